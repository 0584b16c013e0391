package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// armPrograms names the folder of what packages/build made for other machines.
const armPrograms = "TOUCHLINE_TEST_ARM"

// TestArm_RunsTheDemosPath runs the programs of the packages for the boards
// that gateways are, in an emulator of their processor: a cloud, a gateway and
// players, one of them killed, and the audit that all tests have.
func TestArm_RunsTheDemosPath(t *testing.T) {
	dir := os.Getenv(armPrograms)
	if dir == "" {
		t.Skip("runs the programs of other machines, for minutes: `make test-arm` builds and runs them")
	}
	for arch, emulator := range map[string]string{"arm64": "qemu-aarch64-static", "armhf": "qemu-arm-static"} {
		t.Run(arch, func(t *testing.T) {
			need(t, emulator)
			emulated := func(name string) string {
				found, err := filepath.Glob(filepath.Join(dir, name+"_*_linux_"+arch))
				if err != nil || len(found) != 1 {
					t.Fatalf("%d programs %s for %s in %s: %v", len(found), name, arch, dir, err)
				}
				script := filepath.Join(t.TempDir(), name)
				writeFile(t, script, fmt.Sprintf("#!/bin/sh\nexec %s %q \"$@\"\n", emulator, found[0]))
				if err := os.Chmod(script, 0o700); err != nil { // #nosec G302 -- it is run
					t.Fatal(err)
				}
				return script
			}
			gateway, cloud := emulated("touchline"), emulated("touchline-cloud")
			t.Run("simulate", func(t *testing.T) { simulated(t, cloud, gateway) })
			t.Run("killed", func(t *testing.T) {
				s := newSiteOf(t, cloud, gateway, "")
				s.startCloud()
				s.startGateway()
				c := s.publish(everyDoor...)
				c.more(t, 500)
				s.gateway.kill()
				s.startGateway()
				c.more(t, 500)
				s.cloud.kill()
				c.more(t, 500)
				s.startCloud()
				c.finish(t)
				s.drained()
				v := s.audit(c)
				if !v.holds() || v.acked != v.sent || v.epochs < 2 {
					t.Error(v)
				}
				t.Logf("MEASURED %s in %s, gateway and cloud killed: %s", arch, emulator, v)
			})
		})
	}
}

// simulated is what make demo shows: players of a match, and the line to the
// cloud away for a while.
func simulated(t *testing.T, cloud, gateway string) {
	s := newSiteOf(t, cloud, gateway, "")
	s.startGateway()
	simulate := start(t, gateway, "simulate", "--to", s.address("mqtt"), "--players", "8", "--rate", "10", "--for", "10s", "--json")
	waitFor(t, "samples that wait", func() bool { return s.status().Buffer.Samples > 500 })
	s.startCloud()
	if status := simulate.exit(); status != 0 {
		t.Fatalf("simulate: %s", simulate.log)
	}
	var result struct{ Samples, Unacknowledged, Skipped, Sensors int }
	_, printed, _ := strings.Cut("\n"+simulate.log.String(), "\n{") // behind its log
	if err := json.Unmarshal([]byte("{"+printed), &result); err != nil {
		t.Fatalf("simulate said %q: %v", simulate.log, err)
	}
	s.drained()
	rows, sensors := 0, map[string]bool{}
	s.eachRow(func(r []string) {
		rows++
		sensors[r[2]] = true
	})
	if rows != result.Samples || rows == 0 || result.Unacknowledged != 0 || len(sensors) != result.Sensors {
		t.Errorf("%d rows of %d sensors, for %+v", rows, len(sensors), result)
	}
	t.Logf("MEASURED %s: %d samples of %d sensors acknowledged, all in the cloud once", t.Name(), rows, len(sensors))
}
