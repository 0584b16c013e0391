package daemon_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// A limit of the file is that of the listeners: each, set low, ends a connection
// that the others would keep.
func TestLimits_OfTheFileAreThoseOfTheListeners(t *testing.T) {
	for key, c := range map[string]struct {
		sent, want string
		within     time.Duration // less than the default
	}{
		"receive_timeout": {"POST /v1/samples HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{", "400", 25 * time.Second},
		"idle_timeout":    {"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200", time.Minute},
		"write_timeout":   {strings.Repeat("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 10_000), "200", 8 * time.Second}, // some 10 MB of answers
	} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			d := run(t, settings(t, map[string]string{"sensors.limits." + key: "100ms"}))
			conn, err := net.Dial("tcp", d.HTTPAddr())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(c.within))
			if key == "write_timeout" { // it is not read before all is written, or nothing can be
				for err == nil {
					_, err = io.WriteString(conn, c.sent)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("who does not read keeps its connection")
				}
				return
			}
			if _, err := io.WriteString(conn, c.sent); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			said, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still open")
			}
			if line, _, _ := strings.Cut(string(said), "\r\n"); !strings.Contains(line, c.want) {
				t.Errorf("it said %q, want %q", line, c.want)
			}
			t.Logf("MEASURED sensors.limits.%s = 100ms: the connection ended after %s", key, time.Since(began).Round(time.Millisecond))
		})
	}
}
