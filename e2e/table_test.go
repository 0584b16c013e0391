package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parquet-go/parquet-go"

	"touchline/internal/pgtest"
)

// onPostgres has the site's cloud record into a PostgreSQL database, which the
// URL names.
func (s *site) onPostgres(url string) {
	s.t.Helper()
	conf := filepath.Dir(s.cloudConfig)
	password, token := filepath.Join(conf, "password"), filepath.Join(conf, "token")
	writeFile(s.t, password, pgtest.Password+"\n")
	writeFile(s.t, s.cloudConfig, fmt.Sprintf("listen = \"127.0.0.1:%d\"\nstore = %q\nstore_password_file = %q\n", s.cloudPort, url, password))
	out, stderr, status := run(s.t, "touchline-cloud", "gateway", "add", "venue-1", "--config", s.cloudConfig)
	if status != 0 {
		s.t.Fatal(stderr)
	}
	writeFile(s.t, token, out)
}

// table runs an export to its end, and fails the test where that fails.
func (s *site) table(args ...string) (stdout string) {
	s.t.Helper()
	out, stderr, status := run(s.t, "touchline-cloud", append([]string{"export", "--config", s.cloudConfig}, args...)...)
	if status != 0 || !strings.Contains(stderr, "samples") {
		s.t.Fatalf("export %v: status %d: %s", args, status, stderr)
	}
	return out
}

// A cell is what both formats and /v1/samples have of a sample.
type cell struct {
	Time    int64   `parquet:"time,timestamp(nanosecond)"`
	Gateway string  `parquet:"gateway"`
	Sensor  string  `parquet:"sensor"`
	Metric  string  `parquet:"metric"`
	Value   float64 `parquet:"value,optional"`
	Seq     int64   `parquet:"seq"`
}

func csvCells(t *testing.T, data string) (list []cell) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSuffix(data, "\n"), "\n") {
		if i == 0 {
			continue
		}
		f := strings.Split(line, ",") // names and values of these tests have none
		if len(f) != 12 || f[5] != "number" {
			t.Fatalf("line %d is %q", i, line)
		}
		at, err1 := strconv.ParseInt(f[0], 10, 64)
		value, err2 := strconv.ParseFloat(f[6], 64)
		seq, err3 := strconv.ParseInt(f[11], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatalf("line %d is %q", i, line)
		}
		list = append(list, cell{at, f[1], f[2], f[3], value, seq})
	}
	return list
}

// TestTable_WhileSamplesComeIn: of both stores, both formats have each sample
// that was stored when they began once, in order, and none twice, while a
// gateway goes on; and at the end they and GET /v1/samples agree.
func TestTable_WhileSamplesComeIn(t *testing.T) {
	const before, after = 20_000, 20_000
	for _, store := range []string{"SQLite", "PostgreSQL"} {
		t.Run(store, func(t *testing.T) {
			s := newSite(t, "")
			if store == "PostgreSQL" {
				s.onPostgres(withoutPassword(pgtest.Start(t, "").Database(t)))
			}
			s.startCloud()
			s.startGateway()
			s.deposit(0, before, false)
			s.drained()

			dir := t.TempDir()
			var exports []*program
			for _, format := range []string{"csv", "parquet"} {
				exports = append(exports, start(t, "touchline-cloud", "export", "--config", s.cloudConfig, "-o", filepath.Join(dir, "during."+format)))
			}
			s.deposit(before, before+after, false)
			for _, e := range exports {
				if status := e.exit(); status != 0 {
					t.Fatalf("status %d: %s", status, e.log.String())
				}
			}
			during, err := os.ReadFile(filepath.Join(dir, "during.csv"))
			if err != nil {
				t.Fatal(err)
			}
			from, err := parquet.ReadFile[cell](filepath.Join(dir, "during.parquet"))
			if err != nil {
				t.Fatal(err)
			}
			for format, got := range map[string]int{"csv": strings.Count(string(during), "\n") - 1, "parquet": len(from)} {
				if got < before || got > before+after {
					t.Errorf("%s has %d samples, when %d were stored before and %d came meanwhile", format, got, before, after)
				}
				t.Logf("MEASURED %s: %s had %d of %d samples, of which %d were stored when it began", store, format, got, before+after, before)
			}
			for i, c := range from { // a value is its sample's number in the order of times
				if c.Value != float64(i) {
					t.Fatalf("row %d of %d is sample %v", i, len(from), c.Value)
				}
			}

			s.drained()
			s.hasOnce(before + after)
			whole := csvCells(t, s.table("--time", "ns"))
			s.table("--format", "parquet", "-o", filepath.Join(dir, "after.parquet"))
			if from, err = parquet.ReadFile[cell](filepath.Join(dir, "after.parquet")); err != nil {
				t.Fatal(err)
			}
			answer := strings.Split(strings.TrimSpace(string(s.get(s.cloudPort, "/v1/samples"))), "\n")[1:]
			if len(whole) != before+after || len(from) != len(whole) || len(answer) != len(whole) {
				t.Fatalf("CSV has %d samples, Parquet %d, /v1/samples %d, and %d were sent", len(whole), len(from), len(answer), before+after)
			}
			for i, c := range whole {
				if from[i] != c {
					t.Fatalf("row %d: CSV has %+v, Parquet %+v", i, c, from[i])
				}
				if want := fmt.Sprintf("%d,%s,%s,%s,,%v,", c.Time, c.Gateway, c.Sensor, c.Metric, int64(c.Value)); answer[i] != want {
					t.Fatalf("row %d: CSV has %q, /v1/samples %q", i, want, answer[i])
				}
			}
			// The sample of 00:00:10 up to that of 00:00:19.
			part := csvCells(t, s.table("--time", "ns", "--from", "2026-01-01 00:00:10Z", "--to", "2026-01-01T00:00:20Z", "--gateway", "venue-1", "--sensor", "belt-1", "--metric", "m"))
			if len(part) != 10 || part[0].Value != 10 || part[9].Value != 19 {
				t.Errorf("a selection has %v", part)
			}
			if part := csvCells(t, s.table("--time", "ns", "--metric", "other")); len(part) != 0 {
				t.Errorf("of a metric that is not there it has %v", part)
			}
		})
	}
}

// TestTable_SaysWhatWentWrong and leaves no file: a reader that goes away, a
// disk that is full, a name that is taken, a folder without a store.
func TestTable_SaysWhatWentWrong(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	s.deposit(0, 20_000, true) // some megabytes as CSV, more than a pipe holds
	s.drained()
	command := func(args ...string) *exec.Cmd {
		return exec.Command(programPath("touchline-cloud"), append([]string{"export", "--config", s.cloudConfig}, args...)...)
	}
	t.Run("pipe", func(t *testing.T) {
		cmd := command()
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReaderSize(out, 16).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "time,gateway,") {
			t.Errorf("the first line is %q (%v)", line, err)
		}
		out.Close()
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "closed it before the end") {
			t.Errorf("status %d: %s", cmd.ProcessState.ExitCode(), stderr.String())
		}
	})
	t.Run("full device", func(t *testing.T) {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skip("there is no /dev/full: " + err.Error())
		}
		defer full.Close()
		cmd := command()
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &stderr
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("%v: %s", err, stderr.String())
		}
	})
	t.Run("full disk", func(t *testing.T) {
		small := mountDisk(t, &disk{options: "size=200k"})
		for _, name := range []string{"x.csv", "x.csv.gz", "x.parquet"} {
			_, stderr, status := run(t, "touchline-cloud", "export", "--config", s.cloudConfig, "-o", filepath.Join(small.dir, name))
			if status != 1 || !strings.Contains(stderr, "no space left on device") {
				t.Errorf("%s: status %d: %s", name, status, stderr)
			}
			if left, err := os.ReadDir(small.dir); err != nil || len(left) != 0 {
				t.Errorf("%s: %v is left (%v)", name, left, err)
			}
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		taken := filepath.Join(t.TempDir(), "x.csv")
		writeFile(t, taken, "mine")
		nowhere := filepath.Join(t.TempDir(), "nowhere")
		for _, c := range []struct {
			args []string
			want string
		}{
			{[]string{"-o", taken}, "--force"},
			{[]string{"-o", filepath.Join(nowhere, "x.csv")}, "no such file"},
			{[]string{"-o", "x.csv", "--format", "parquet"}, "do not agree"},
			{[]string{"-o", "x.xlsx"}, "says no format"},
			{[]string{"--format", "xls"}, "csv and parquet"},
			{[]string{"--format", "parquet", "--compress"}, "compressed in itself"},
			{[]string{"--from", "yesterday"}, "--from"},
			{[]string{"--from", "2026-05-02", "--to", "2026-05-01"}, "after to"},
			{[]string{"--sensor", "a/b"}, "--sensor"},
			{[]string{"--data", nowhere}, "no record store"},
		} {
			if out, stderr, status := run(t, "touchline-cloud", append([]string{"export", "--config", s.cloudConfig}, c.args...)...); status != 1 || !strings.Contains(stderr, c.want) || out != "" {
				t.Errorf("%v: status %d, %q, %s", c.args, status, out, stderr)
			}
		}
		if data, err := os.ReadFile(taken); err != nil || string(data) != "mine" {
			t.Errorf("the file has %q (%v)", data, err)
		}
		if _, err := os.Stat(nowhere); err == nil {
			t.Error("a store was made where there was none")
		}
	})
}

// A line carries connections to a server, and stands still for good after so
// many bytes of answers.
type line struct {
	port    int
	left    atomic.Int64  // bytes
	reached chan struct{} // closed when it stands still
	still   sync.Once
	ended   chan struct{} // closed by cut

	mu    sync.Mutex
	conns []net.Conn
}

// newLine begins one; it ends with the test.
func newLine(t *testing.T, server string, limit int64) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{port: listener.Addr().(*net.TCPAddr).Port, reached: make(chan struct{}), ended: make(chan struct{})}
	l.left.Store(limit)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				near.Close()
				continue
			}
			l.mu.Lock()
			l.conns = append(l.conns, near, far)
			l.mu.Unlock()
			running.Go(func() { l.carry(far, near, false) })
			running.Go(func() { l.carry(near, far, true) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		l.cut()
		running.Wait()
	})
	return l
}

func (l *line) carry(to, from net.Conn, answers bool) {
	defer to.Close()
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if answers && l.left.Add(-int64(n)) < 0 {
			l.still.Do(func() { close(l.reached) })
			<-l.ended
			return
		}
		if _, failed := to.Write(buf[:n]); failed != nil || err != nil {
			return
		}
	}
}

// cut breaks all connections. It may be called twice.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.ended:
		return
	default:
	}
	close(l.ended)
	for _, c := range l.conns {
		c.Close()
	}
}

// TestTable_OfAStoreThatGoesAway: the line to the store stands still in the
// middle of the answers. Ctrl-C ends the export, and so does the end of the
// line; no file is left of either.
func TestTable_OfAStoreThatGoesAway(t *testing.T) {
	s := newSite(t, "")
	url := withoutPassword(pgtest.Start(t, "").Database(t))
	s.onPostgres(url)
	s.startCloud()
	s.startGateway()
	s.deposit(0, 40_000, true) // 40,000 random numbers are 300 kB, whatever is done to them
	s.drained()
	config, err := os.ReadFile(s.cloudConfig)
	if err != nil {
		t.Fatal(err)
	}
	server := url[strings.Index(url, "@")+1:]
	server = server[:strings.Index(server, "/")]
	for name, c := range map[string]struct {
		end  func(*line, *program)
		want string
	}{
		"interrupted": {func(_ *line, e *program) { _ = e.cmd.Process.Signal(os.Interrupt) }, "interrupted"},
		"cut":         {func(l *line, _ *program) { l.cut() }, "scan blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t, server, 150<<10)
			behind := filepath.Join(t.TempDir(), "cloud.toml")
			writeFile(t, behind, strings.Replace(string(config), server, fmt.Sprintf("127.0.0.1:%d", l.port), 1))
			dir := t.TempDir()
			export := start(t, "touchline-cloud", "export", "--config", behind, "-o", filepath.Join(dir, "x.csv"))
			export.expected = true
			select {
			case <-l.reached:
			case <-t.Context().Done():
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() == "x.csv" {
				t.Errorf("while it is being written there is %v (%v)", entries, err)
			}
			c.end(l, export)
			if status := export.exit(); status != 1 || !strings.Contains(export.log.String(), c.want) {
				t.Errorf("status %d: %s", status, export.log.String())
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("%v is left (%v)", left, err)
			}
			t.Logf("it said: %s", strings.TrimSpace(export.log.String()))
		})
	}
	t.Run("away from the start", func(t *testing.T) {
		away := filepath.Join(t.TempDir(), "cloud.toml")
		writeFile(t, away, strings.Replace(string(config), server, fmt.Sprintf("127.0.0.1:%d", freePort(t)), 1))
		out, stderr, status := run(t, "touchline-cloud", "export", "--config", away)
		if status != 1 || out != "" || !strings.Contains(stderr, "store: ") || strings.Contains(stderr, pgtest.Password) {
			t.Errorf("status %d, %q, %s", status, out, stderr)
		}
		t.Logf("it said: %s", strings.TrimSpace(stderr))
	})
}
