package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"touchline/internal/pgtest"
)

// TestRestore_CloudGetsBackWhatItLost takes a copy of the cloud's store, as a
// backup does, lets it store more, and puts the copy back: the gateway sends
// again what the cloud had called stored and lacks now.
func TestRestore_CloudGetsBackWhatItLost(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	c := s.publish(everyDoor...)
	c.more(t, 300)
	s.cloud.terminate()
	backup := t.TempDir()
	copyFolder(t, s.cloudData, backup)
	s.startCloud()
	c.more(t, 300)
	c.finish(t)
	s.drained()
	kept := s.status().Buffer.KeptSamples
	if kept == 0 {
		t.Fatal("the gateway keeps nothing of what is stored")
	}
	s.cloud.terminate()
	if err := os.RemoveAll(s.cloudData); err != nil {
		t.Fatal(err)
	}
	copyFolder(t, backup, s.cloudData)
	before := s.status()
	s.startCloud()
	waitFor(t, "what is missing to be stored again", func() bool {
		st := s.status()
		return st.Buffer.Lacked > 0 && st.Uplink.Stored >= before.Uplink.Stored+st.Buffer.Lacked
	})
	s.drained()
	again := s.status().Buffer.Lacked
	v := s.audit(c)
	if !v.holds() || v.doubled > 0 || v.foreign > 0 {
		t.Error(v)
	}
	t.Logf("MEASURED cloud restored from a backup: %d samples sent again; %s", again, v)
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestRestore_PostgresGetsBackWhatItLost is the same with a database: a dump
// that was taken while nodes recorded, as backups are, goes into an empty database, and
// what was stored after it comes again.
func TestRestore_PostgresGetsBackWhatItLost(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, "")
	s := newSite(t, "")
	conf := filepath.Dir(s.cloudConfig)
	password := filepath.Join(conf, "password")
	writeFile(t, password, pgtest.Password+"\n")
	moveStore := func(url string) {
		writeFile(t, s.cloudConfig, fmt.Sprintf("listen = \"127.0.0.1:%d\"\nstore = %q\nstore_password_file = %q\n", s.cloudPort, withoutPassword(url), password))
	}
	program := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(server.Program(name), args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	url := server.Database(t)
	moveStore(url)
	token, stderr, status := run(t, "touchline-cloud", "gateway", "add", s.venue, "--config", s.cloudConfig)
	if status != 0 {
		t.Fatalf("gateway add: status %d, %s", status, stderr)
	}
	writeFile(t, filepath.Join(conf, "token"), token)
	s.startCloud()
	s.startGateway()
	c := s.publish(everyDoor...)
	c.more(t, 300)
	dump := filepath.Join(t.TempDir(), "dump")
	program("pg_dump", "--format", "custom", "--schema", "touchline", "--file", dump, url)
	c.more(t, 300)
	c.finish(t)
	s.drained()

	s.cloud.terminate()
	restored := server.Database(t)
	program("pg_restore", "--exit-on-error", "--dbname", restored, dump)
	moveStore(restored)
	before := s.status()
	s.startCloud()
	waitFor(t, "what is missing to be stored again", func() bool {
		st := s.status()
		return st.Buffer.Lacked > 0 && st.Uplink.Stored >= before.Uplink.Stored+st.Buffer.Lacked
	})
	s.drained()
	again := s.status().Buffer.Lacked
	v := &verdict{by: map[string]uint64{}}
	s.tally(c, v)
	s.cloud.terminate()
	auditPostgres(t, restored, v)
	if !v.holds() || v.doubled > 0 || v.foreign > 0 {
		t.Error(v)
	}
	t.Logf("MEASURED database restored from a dump: %d samples sent again; %s", again, v)
}
