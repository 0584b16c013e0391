package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// moveCloud gives the cloud another data folder, and takes along what is there.
func (s *site) moveCloud(dir string) {
	s.t.Helper()
	if err := os.CopyFS(dir, os.DirFS(s.cloudData)); err != nil {
		s.t.Fatal(err)
	}
	config, err := os.ReadFile(s.cloudConfig)
	if err != nil {
		s.t.Fatal(err)
	}
	writeFile(s.t, s.cloudConfig, strings.Replace(string(config), fmt.Sprintf("%q", s.cloudData), fmt.Sprintf("%q", dir), 1))
	s.cloudData = dir
}

// cloudReady asks the cloud whether it is ready, and if not, why.
func (s *site) cloudReady() (ready bool, reason string, err error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", s.cloudPort))
	if err != nil {
		return false, "", err
	}
	defer resp.Body.Close()
	var said struct{ Reason string }
	err = json.NewDecoder(resp.Body).Decode(&said)
	return resp.StatusCode == http.StatusOK, said.Reason, err
}

// TestCloudDiskFull_NothingStoredIsLost fills the cloud's disk under load, and
// gives the space back. Meanwhile the cloud must say that it is not ready, live
// through it, and call nothing stored; the gateway takes samples and keeps
// them. Then it goes on by itself. A cloud that is killed and started again on
// the full disk either serves, or ends and says why.
func TestCloudDiskFull_NothingStoredIsLost(t *testing.T) {
	for _, kind := range diskKinds {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/killed=%t", kind.name, killed), func(t *testing.T) {
				d := kind.mount(t, 2*smallMiB)
				s := newSite(t, "")
				s.moveCloud(d.data())
				s.startCloud()
				s.startGateway()
				c := s.publish(everyDoor...)
				c.more(t, 500)
				d.fill()
				var why string
				waitFor(t, "the cloud to say that it is not ready", func() bool {
					ready, reason, err := s.cloudReady()
					why = reason
					return err == nil && !ready && strings.Contains(reason, "record blocks")
				})
				if !saysFull(why) && !strings.Contains(why, "disk I/O error") {
					t.Errorf("the cloud is not ready, and says %q", why)
				}
				before := s.status().Buffer.Samples
				c.more(t, 1000)
				waitFor(t, "the gateway to keep what it takes", func() bool { return s.status().Buffer.Samples > before+500 })
				ended := "it lived"
				if killed {
					s.cloud.expected = true
					s.cloud.kill()
					ended = "started again: " + s.startCloudOnFullDisk()
				}
				d.empty()
				if !s.cloud.running() {
					s.startCloud()
				}
				c.more(t, 500)
				c.finish(t)
				s.drained()
				waitFor(t, "the cloud to be ready", func() bool { ready, _, err := s.cloudReady(); return err == nil && ready })
				kept := s.status().Buffer.Evicted
				v := s.audit(c)
				if !v.holds() || kept > 0 {
					t.Errorf("%d evicted by the gateway; %s", kept, v)
				}
				t.Logf("MEASURED full disk of the cloud, %s: %s (%s); %s", kind.name, why, ended, v)
			})
		}
	}
}

// startCloudOnFullDisk starts the cloud where it may not be able to, and says
// what it did.
func (s *site) startCloudOnFullDisk() string {
	s.t.Helper()
	s.cloud = start(s.t, s.cloudProgram, "run", "--config", s.cloudConfig)
	served := false
	waitFor(s.t, "the cloud to answer or to end", func() bool {
		_, _, err := s.cloudReady()
		served = err == nil
		return served || !s.cloud.running()
	})
	if served {
		return "it served"
	}
	said := strings.TrimSpace(s.cloud.log.String())
	if s.cloud.exit() != 1 || strings.Contains(said, "goroutine") {
		s.t.Errorf("the cloud ended with status %d and said %q", s.cloud.exit(), tail(said, 4<<10))
	}
	s.cloud.expected = true
	return "it ended: " + said[max(0, strings.LastIndex(said, "cloud.db: ")):]
}

// TestCloudDiskFull_NoFillLevelKills opens the record store with each number of
// blocks free that leaves the index of its log in part without any. SQLite maps
// that file; a store into a hole of it would end the process with SIGBUS, as
// the control does.
func TestCloudDiskFull_NoFillLevelKills(t *testing.T) {
	mutant := filepath.Join(t.TempDir(), "touchline-cloud")
	build := exec.Command("go", "build", "-tags", "mutant_shm_hole", "-o", mutant, "touchline/cmd/touchline-cloud")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	kinds := diskKinds
	if !long() {
		kinds = diskKinds[1:2] // the one with holes
	}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			d := kind.mount(t, smallMiB)
			s := newSite(t, "")
			s.moveCloud(d.data())
			d.fill()
			tried, opened, killed, control := 0, 0, 0, 0
			for free := range 48 { // KiB: an index of 32, a log and its head
				d.leave(free)
				for _, program := range []string{s.cloudProgram, mutant} {
					_, stderr, status := run(t, program, "gateway", "list", "--config", s.cloudConfig)
					crashed := status != 0 && status != 1 || strings.Contains(stderr, "SIGBUS")
					switch {
					case program == mutant && crashed:
						control++
					case program == mutant:
					case crashed:
						killed++
						t.Errorf("with %d KiB free it ended with status %d:\n%s", free, status, tail(stderr, 1<<10))
					case status == 0:
						opened++
						fallthrough
					default:
						tried++
						if status == 1 && !saysFull(stderr) && !strings.Contains(stderr, "disk I/O error") {
							t.Errorf("with %d KiB free it says %q", free, stderr)
						}
					}
				}
			}
			t.Logf("MEASURED opening the record store on a full disk, %s: %d fill levels, %d opened, %d killed; without allocation (control) %d killed",
				kind.name, tried, opened, killed, control)
			if kind.name == "ext4-1KiB" && control == 0 {
				t.Error("the control was never killed: the test can't fail")
			}
		})
	}
}

// leave makes the ballast shorter, so that so much is free and no more.
func (d *disk) leave(kib int) {
	d.t.Helper()
	d.fill()
	info, err := os.Stat(d.ballast())
	if err == nil {
		err = os.Truncate(d.ballast(), info.Size()-int64(kib)<<10)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}
