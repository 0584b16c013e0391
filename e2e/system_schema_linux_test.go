package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSystem_ALaterSchemaGoesUpAndBack goes to a version that brings the buffer
// to another schema, back, and there again, under load and with a backlog that
// the cloud does not have: the older version leaves the file alone and says
// which version takes it back, that one does, and nothing is lost or doubled.
func TestSystem_ALaterSchemaGoesUpAndBack(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.enrolled()
		c := b.publish(systemCrowd...)
		c.more(t, 500)
		later := b.version("later")
		words := "touchline " + later + " or newer takes it back"
		install := func(version string) {
			t.Helper()
			enough, begin := b.knock(), time.Now()
			said := b.dpkgInstall(version, "touchline")
			took := lasted(begin)
			b.ready()
			c.more(t, 500)
			knocks, refused := enough()
			if refused > 0 || knocks == 0 {
				t.Errorf("to the %s version: %d of %d sensors that connected were refused", version, refused, knocks)
			}
			if is := b.do("touchline", "version"); !strings.Contains(is, b.version(version)) || strings.Contains(said, "did not start") {
				t.Errorf("the %s version is %s; dpkg said\n%s", version, is, said)
			}
			t.Logf("MEASURED to the %s version under load: dpkg took %s, %d sensors connected meanwhile, %d refused", version, took, knocks, refused)
		}

		install("later")
		if aside := b.aside(); len(aside) > 0 {
			t.Fatalf("the migration set aside %+v", aside)
		}
		b.cloud.terminate()
		c.more(t, 500)
		held := b.status().Buffer.Samples

		install("this")
		list := b.aside()
		if len(list) != 1 || list[0].Kind != "newer" || list[0].Needs != later || list[0].State != "untouched" {
			t.Fatalf("the version before set aside %+v", list)
		}
		aside := list[0].Path
		for what, says := range map[string]string{
			"touchline status":       b.do("touchline", "status"),
			"touchline buffer check": b.do("touchline", "buffer", "check"),
			"the report":             b.do("cat", aside+".json"),
			"the journal":            b.do("journalctl", "--unit", "touchline", "--priority", "warning", "--no-pager", "--output", "cat"),
		} {
			if !strings.Contains(says, words) {
				t.Errorf("%s does not say %q:\n%s", what, words, tail(says, 4<<10))
			}
		}
		sum := b.sumOf(aside)
		b.do("systemctl", "restart", "touchline")
		b.ready()
		c.more(t, 500)
		if b.sumOf(aside) != sum {
			t.Error("the file that was set aside was changed")
		}

		install("later")
		if list = b.aside(); len(list) != 1 || list[0].Kind != "taken" || list[0].Samples < held {
			t.Fatalf("it held %d samples, and of it was taken back %+v", held, list)
		}
		b.startCloud()
		t.Logf("MEASURED schema up, back and up again with a backlog of %d samples: %s", held, b.settle(c))
	})
}

// An asideFile is a database that lies beside the gateway's.
type asideFile struct {
	Path, Kind, Needs, State string
	Samples                  uint64 `json:"samples_salvaged"`
}

func (b *box) aside() []asideFile {
	b.t.Helper()
	var st struct {
		Buffer struct {
			Aside []asideFile `json:"set_aside"`
		}
	}
	if err := json.Unmarshal(b.get(b.http, "/v1/status"), &st); err != nil {
		b.t.Fatal(err)
	}
	return st.Buffer.Aside
}

// sumOf is the checksum of a file of the machine and of what belongs to it.
func (b *box) sumOf(path string) string {
	b.t.Helper()
	h := sha256.New()
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		text, err := os.ReadFile(filepath.Join(b.root, path+suffix))
		if err != nil && (suffix == "" || !os.IsNotExist(err)) {
			b.t.Fatal(err)
		}
		fmt.Fprintf(h, "%q %t %d ", suffix, err == nil, len(text))
		h.Write(text)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestSystem_AStoreOfALaterSchemaNamesItsVersion goes to a touchline-cloud that
// brings its store to another schema, and back: the package and the journal say
// which version reads it, that one goes on where it was, and the gateway keeps
// meanwhile what it is sent.
func TestSystem_AStoreOfALaterSchemaNamesItsVersion(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		port := b.packagedCloud()
		code := strings.Fields(b.do("touchline-cloud", "gateway", "claim", "--venue", "stadium"))[0]
		b.dpkgInstall("this", "touchline")
		b.do("touchline", "install", "--claim", code, "--cloud", "ws://127.0.0.1:"+strconv.Itoa(port))
		b.settings("[sensors]\ndedupe_window = \"10m\"\n")
		b.ready()
		c := b.publish(systemCrowd...)
		c.more(t, 500)

		b.dpkgInstall("later", "touchline-cloud")
		b.waitReady("touchline-cloud", b.machine, port)
		c.more(t, 500)
		journal := func() string { return b.do("journalctl", "--unit", "touchline-cloud", "--no-pager", "--output", "cat") }
		if !strings.Contains(journal(), "the record store is brought up to date") {
			t.Errorf("nothing says that the store was migrated:\n%s", tail(journal(), 2<<10))
		}

		later := b.version("later")
		said := b.dpkgInstall("this", "touchline-cloud")
		for _, want := range []string{"touchline-cloud: it did not start", "touchline-cloud=" + later, "journalctl -u touchline-cloud"} {
			if !strings.Contains(said, want) {
				t.Errorf("going back says\n%s\nwant %q", said, want)
			}
		}
		if words := "touchline-cloud " + later + " or newer reads this record store"; !strings.Contains(journal(), words) {
			t.Errorf("the journal does not say %q:\n%s", words, tail(journal(), 2<<10))
		}
		c.more(t, 500) // into the gateway's buffer

		b.dpkgInstall("later", "touchline-cloud")
		b.waitReady("touchline-cloud", b.machine, port)
		c.more(t, 500)
		c.finish(t)
		b.drained()
		v := &verdict{by: map[string]uint64{}}
		b.tally(c, v)
		if !v.holds() || v.acked != v.sent || v.acked == 0 {
			t.Error(v)
		}
		t.Logf("MEASURED cloud to a later schema, back and there again: %s", v)
	})
}

// packagedCloud installs a node from its package, and returns its port.
func (b *box) packagedCloud() int {
	b.t.Helper()
	b.dpkgInstall("this", "touchline-cloud")
	b.cloudPort = freePort(b.t)
	name := filepath.Join(b.root, "etc/touchline-cloud/touchline-cloud.toml")
	if err := os.WriteFile(name, append(must(os.ReadFile(name)), fmt.Sprintf("listen = \"127.0.0.1:%d\"\n", b.cloudPort)...), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.do("systemctl", "restart", "touchline-cloud")
	b.waitReady("touchline-cloud", b.machine, b.cloudPort)
	return b.cloudPort
}

// TestSystem_AVersionThatDiesLaterSaysSo: a version that says that it is ready
// and dies two seconds later, or at once, is one that did not start, for who
// installs it.
func TestSystem_AVersionThatDiesLaterSaysSo(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.enrolled()
		// The next start runs for so long, and so does each after it: also one that
		// is over before anybody can look.
		dropIn := filepath.Join(b.root, "etc/systemd/system/touchline.service.d/dies.conf")
		if err := os.MkdirAll(filepath.Dir(dropIn), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, dying := range []struct{ life, version, before string }{{"2s", "next", "this"}, {"1us", "this", "next"}} {
			if err := os.WriteFile(dropIn, []byte("[Service]\nRuntimeMaxSec="+dying.life+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			said := b.dpkgInstall(dying.version, "touchline")
			for _, want := range []string{"touchline: it started, and died", "journalctl -u touchline", "touchline=" + b.version(dying.before)} {
				if !strings.Contains(said, want) {
					t.Errorf("a version that dies after %s says\n%s\nwant %q", dying.life, said, want)
				}
			}
			t.Logf("MEASURED a version that dies after %s: known after %s", dying.life, lasted(begin))
		}
		// So does the program that installs itself.
		if out, err := b.try("touchline", "install", "--start"); err == nil || !strings.Contains(out, "it started, and died") {
			t.Errorf("install --start says %q, %v", out, err)
		}
		if err := os.Remove(dropIn); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if said := b.dpkgInstall("next", "touchline"); strings.Contains(said, "died") || strings.Contains(said, "did not start") {
			t.Errorf("a version that lives says\n%s", said)
		}
		t.Logf("MEASURED a version that lives: dpkg took %s", lasted(begin))
		c := b.publish(systemCrowd...)
		c.more(t, 500)
		t.Logf("MEASURED back from a version that died: %s", b.settle(c))
	})
}
