package e2e

import (
	"os"
	"testing"
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
