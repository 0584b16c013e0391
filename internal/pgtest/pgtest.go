// Package pgtest runs a PostgreSQL server of the test's own: a new cluster in a
// temporary folder, as the user postgres where the test is root, with fsync on,
// on a loopback port and a Unix socket. A test binary's TestMain calls Main,
// its tests Database; the server is started by the first one, and is stopped
// and its folder removed when Main returns. It ends with the test's process
// whatever happens; the folder of one that was killed is removed by the next.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Password is that of the user postgres on these servers.
const Password = "not-a-secret"

// Main runs the tests of a binary and stops the server that they used.
func Main(m *testing.M) int {
	defer stopShared()
	return m.Run()
}

// shared is the server of this binary's tests.
var shared struct {
	mu        sync.Mutex // covers what follows
	server    *Server
	err       error
	databases int
}

// Shared returns the server of this test binary, and starts it where it is the
// first to ask. Where PostgreSQL is not installed the test is skipped.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = start(os.Getenv("TOUCHLINE_TEST_PGDIR"))
	}
	skipOrFail(t, shared.err)
	return shared.server
}

// Start starts a server of the test's own, in a folder below dir ("": memory,
// where a sync costs nothing), which ends with the test.
func Start(t testing.TB, dir string) *Server {
	t.Helper()
	s, err := start(dir)
	skipOrFail(t, err)
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return s
}

// New starts a server for a program that is no test, in a folder below dir, as
// Start does. The caller closes it.
func New(dir string) (*Server, error) { return start(dir) }

// Installed says whether PostgreSQL is here.
func Installed() bool {
	_, err := programs()
	return err == nil
}

// Close stops the server and removes its folder.
func (s *Server) Close() error { return s.close() }

// Create makes an empty database and returns its URL.
func (s *Server) Create(ctx context.Context, name string) (url string, err error) {
	if err := s.exec(ctx, "postgres", `CREATE DATABASE `+name+` TEMPLATE template0`); err != nil {
		return "", fmt.Errorf("make database: %w", err)
	}
	return s.URL(name), nil
}

func skipOrFail(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, errMissing) {
		t.Skipf("PostgreSQL is not here: %v; .ci/setup test installs it", err)
	}
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
}

func stopShared() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		return
	}
	if err := shared.server.close(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest: stop PostgreSQL:", err)
	}
	shared.server = nil
}

// Database makes an empty database on the binary's server and returns its URL.
func Database(t testing.TB) string {
	t.Helper()
	return Shared(t).Database(t)
}

// A Server is one PostgreSQL cluster with its processes.
type Server struct {
	dir  string
	bin  string // folder of its programs
	port int
	user *syscall.Credential // nil: this process's own

	mu     sync.Mutex // covers what follows
	daemon *exec.Cmd  // nil: it is down
	done   chan struct{}
}

var errMissing = errors.New("no initdb of PostgreSQL 15 or newer")

// programs finds PostgreSQL's, which Debian does not put into PATH.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	slices.Sort(found)
	for _, name := range slices.Backward(found) {
		if version, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(name)))); err == nil && version >= 15 {
			return filepath.Dir(name), nil
		}
	}
	if name, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(name), nil
	}
	return "", errMissing
}

const prefix = "touchline-pgtest-"

func start(dir string) (*Server, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	if dir == "" {
		if dir = os.TempDir(); isFolder("/dev/shm") {
			dir = "/dev/shm"
		}
	}
	sweep(dir)
	s := &Server{bin: bin}
	if s.dir, err = os.MkdirTemp(dir, fmt.Sprintf("%s%d-", prefix, os.Getpid())); err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// sweep removes the folders of test processes that are no more.
func sweep(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, prefix+"*"))
	for _, name := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), prefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			_ = os.RemoveAll(name)
		}
	}
}

func isFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

func (s *Server) begin() error {
	if os.Geteuid() == 0 {
		// PostgreSQL refuses to run as root.
		u, err := user.Lookup("postgres")
		if err != nil {
			return fmt.Errorf("%w: %w", errMissing, err)
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err, err2, os.Chown(s.dir, int(uid), int(gid))); err != nil {
			return err
		}
		s.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	pwfile := filepath.Join(s.dir, "password")
	if err := os.WriteFile(pwfile, []byte(Password+"\n"), 0o644); err != nil {
		return err
	}
	if out, err := s.command("initdb", "--pgdata", s.data(), "--username", "postgres", "--pwfile", pwfile,
		"--auth-local", "trust", "--auth-host", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-instructions").CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.port = probe.Addr().(*net.TCPAddr).Port
	if err := probe.Close(); err != nil {
		return err
	}
	return s.up()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "HOME="+s.dir)
	// The server ends at once when this process does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user, Pdeathsig: syscall.SIGQUIT}
	return cmd
}

// up starts the daemon and waits until it answers.
func (s *Server) up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon != nil {
		return nil
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.port), "-k", s.dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100",
		"-c", "shared_buffers=64MB", "-c", "max_wal_size=2GB", "-c", "log_min_messages=warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.daemon, s.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(s.done)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	end := time.After(2 * time.Minute)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := s.exec(ctx, "postgres", `SELECT 1`)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-s.done:
			said, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.daemon = nil
			return fmt.Errorf("postgres ended: %s", bytes.TrimSpace(said))
		case <-end:
			return fmt.Errorf("postgres does not answer: %w", err)
		}
	}
}

// down sends the daemon a signal and waits for its end.
func (s *Server) down(signal syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon == nil {
		return nil
	}
	if err := s.daemon.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.done
	s.daemon = nil
	return nil
}

func (s *Server) close() error { return errors.Join(s.down(syscall.SIGINT), os.RemoveAll(s.dir)) }

// Crash ends the server as a power cut of its own would: nothing is written
// any more. Resume starts it again on what is left.
func (s *Server) Crash(t testing.TB) {
	t.Helper()
	if err := s.down(syscall.SIGQUIT); err != nil {
		t.Fatalf("crash PostgreSQL: %v", err)
	}
}

// Stop ends the server as `pg_ctl stop -m fast` does: who is connected is cut
// off. Resume starts it again.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if err := s.down(syscall.SIGINT); err != nil {
		t.Fatalf("stop PostgreSQL: %v", err)
	}
}

// Resume starts the server again, on the same port.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	if err := s.up(); err != nil {
		t.Fatalf("start PostgreSQL again: %v", err)
	}
}

// URL returns that of a database on the server.
func (s *Server) URL(database string) string {
	return fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/%s?sslmode=disable", Password, s.port, database)
}

// Database makes an empty database and returns its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	return s.Clone(t, s.URL("template0"))
}

// Clone makes a copy of a database to which nobody is connected, and returns
// its URL: that costs less than to make many tables once more.
func (s *Server) Clone(t testing.TB, url string) string {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	shared.mu.Lock()
	shared.databases++
	name := fmt.Sprintf("test_%d", shared.databases)
	shared.mu.Unlock()
	if err := s.exec(t.Context(), "postgres", `CREATE DATABASE `+name+` TEMPLATE `+config.Database); err != nil {
		t.Fatalf("make database: %v", err)
	}
	return s.URL(name)
}

// Exec runs statements on a database, by its URL.
func Exec(t testing.TB, url, statements string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err == nil {
		_, err = conn.Exec(t.Context(), statements)
		err = errors.Join(err, conn.Close(t.Context()))
	}
	if err != nil {
		t.Fatalf("%.200s: %v", statements, err)
	}
}

func (s *Server) exec(ctx context.Context, database, statement string) error {
	conn, err := pgx.Connect(ctx, s.URL(database))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

// Program returns the path of one of PostgreSQL's own programs, such as psql
// or pg_dump.
func (s *Server) Program(name string) string { return filepath.Join(s.bin, name) }
