package e2e

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody is who a service runs as, if not as root.
const nobody = 65534

// TestPermission_SetsNothingAside takes files away from a gateway that is not
// root, as a restored backup does whose owner is wrong: it ends and says which
// file, changes nothing, and has all samples when the owner is right again.
func TestPermission_SetsNothingAside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files to somebody else")
	}
	s := newSite(t, "")
	s.startGateway()
	c := s.publish(everyDoor[:2]...)
	c.more(t, 300)
	c.finish(t)
	s.gateway.kill() // leaves the log
	for _, dir := range []string{bin, s.gatewayData, filepath.Dir(s.gatewayConfig)} {
		open(t, dir)
	}
	give(t, nobody, s.gatewayData, s.gatewayConfig, filepath.Join(filepath.Dir(s.gatewayConfig), "token"))
	files := names(t, s.gatewayData)
	for _, tc := range []struct{ name, file string }{
		{"the database", "buffer.db"},
		{"its log", "buffer.db-wal"},
		{"the lock", "buffer.lock"},
		{"the folder", "."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(s.gatewayData, tc.file)
			if err := os.Chown(path, 0, 0); err != nil {
				t.Fatal(err)
			}
			mode := os.FileMode(0o600)
			if tc.file == "." {
				mode = 0o500
			}
			info, err := os.Stat(path)
			if err == nil {
				err = os.Chmod(path, mode)
			}
			if err != nil {
				t.Fatal(err)
			}
			p := startAs(t, nobody, s.gatewayProgram, "run", "--config", s.gatewayConfig)
			if status, said := p.exit(), p.log.String(); status != 1 || !strings.Contains(said, "permission denied") || !strings.Contains(said, s.gatewayData) {
				t.Errorf("it ended with status %d and said %q", status, said)
			}
			if now := names(t, s.gatewayData); !slices.Equal(now, files) {
				t.Errorf("in the folder are %q, were %q", now, files)
			}
			if err := errors.Join(os.Chown(path, nobody, nobody), os.Chmod(path, info.Mode().Perm())); err != nil {
				t.Fatal(err)
			}
		})
	}
	s.gateway = startAs(t, nobody, s.gatewayProgram, "run", "--config", s.gatewayConfig)
	s.waitReady("touchline", s.gateway, s.http)
	s.startCloud()
	s.drained()
	if v := s.audit(c); !v.holds() {
		t.Error(v)
	} else {
		t.Logf("MEASURED files without permission, not as root: 4 kinds, 0 set aside; %s", v)
	}
}

// startAs is start as another user.
func startAs(t *testing.T, id uint32, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, name: name, cmd: exec.Command(programPath(name), args...), log: &logBuffer{}, done: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	p.cmd.Dir = "/" // it may not enter a folder of the test's
	p.run((*exec.Cmd).Start)
	return p
}

// open lets everybody pass to a folder.
func open(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil {
			err = os.Chmod(dir, info.Mode().Perm()|0o055)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// give makes files, and what is in folders, another user's.
func give(t *testing.T, id int, paths ...string) {
	t.Helper()
	for _, path := range paths {
		err := filepath.Walk(path, func(name string, _ os.FileInfo, err error) error {
			return errors.Join(err, os.Chown(name, id, id))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// TestSalvage_TellsTheServiceManager starts a gateway whose database is
// damaged: before it says that it is ready, it asks for more time.
func TestSalvage_TellsTheServiceManager(t *testing.T) {
	s := newSite(t, "")
	s.startGateway()
	c := s.publish(everyDoor[:1]...)
	c.more(t, 100)
	c.finish(t)
	s.gateway.terminate()
	path := filepath.Join(s.gatewayData, "buffer.db")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(content[:64])
	writeFile(t, path, string(content))
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	s.startGateway()
	var said []string
	for buf := make([]byte, 4<<10); !slices.Contains(said, "READY=1"); {
		n, err := l.Read(buf)
		if err != nil {
			t.Fatalf("it said %q, and then nothing: %v", said, err)
		}
		said = append(said, strings.Split(string(buf[:n]), "\n")...)
	}
	if !strings.HasPrefix(said[0], "EXTEND_TIMEOUT_USEC=") {
		t.Errorf("it said %q, want that it needs more time first", said)
	}
	s.startCloud()
	s.drained()
	if v := s.audit(c); !v.holds() {
		t.Error(v)
	}
}
