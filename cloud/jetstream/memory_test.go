package jetstream

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"

	"touchline/wire"
)

// heap returns what is in use, behind all that could be freed.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// A session hears notices of its gateway. What that costs an idle one is beside
// the connection's own 10 KB; here with the server in the same process.
func TestHear_CostsAnIdleGatewayLittle(t *testing.T) {
	const sessions, most = 10_000, 2 << 10
	for where, opts := range map[string]Options{"a cluster": startServers(t, 1, true).queue(), "embedded": options(t.TempDir())} {
		q, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ends := make([]func(), 0, sessions)
		before := heap()
		for i := range sessions {
			end, err := q.Hear(fmt.Sprintf("venue-%05d", i), func([]wire.EpochRanges) {})
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, end)
		}
		if err := q.conn.Flush(); err != nil {
			t.Fatal(err)
		}
		each := (heap() - before) / sessions
		t.Logf("MEASURED %s: what hearing of what is stored costs an idle session, client and server: %d bytes", where, each)
		if each > most {
			t.Errorf("a session costs %d bytes: want at most %d", each, most)
		}
		for _, end := range ends {
			end()
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
