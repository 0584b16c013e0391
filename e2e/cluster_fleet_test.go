package e2e

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/internal/netlab"
	"touchline/uplink"
)

// An arena is a gateway in this process: the real uplink, and a recording in
// place of a buffer. It keeps what it handed out, for the audit.
type arena struct {
	id       string
	uplink   *uplink.Uplink
	source   *memorySource
	requests bool // it is behind a middlebox, and has no WebSocket

	recording []row
	at        int // of recording: the next row

	mu     sync.Mutex // covers what follows
	blocks map[uint64]sentBlock
	next   uint64
	read   []row // what it sent, where it is one that is compared value by value
	keeps  bool
}

// A sentBlock is what the store must have of a block.
type sentBlock struct {
	count uint32
	sum   [sha256.Size]byte
}

const (
	// blockRows is how many rows of a recording are a block.
	blockRows = 32

	// arenaGroups are addresses that gateways come from: the 500 of a league come from
	// many, and the load balancer's limits are for each.
	arenaGroups = 16
)

var recordings = []string{"endurance.csv.gz", "gym_imu.csv.gz", "pitch_positions.csv.gz"}

// loadRecording reads a recording of testdata.
func loadRecording(t *testing.T, name string) []row {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return readRows(t, unzipped, false)
}

// addGateways makes gateways and registers them: n in this process, of which every
// eighth has no WebSocket, and touchline processes.
func (l *league) addGateways(n, sites int) {
	l.t.Helper()
	l.block()
	store, err := l.store.open(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	defer store.Close()
	register := func(id, token string) {
		l.t.Helper()
		if err := store.AddGateway(l.t.Context(), id, sha256.Sum256([]byte(token))); err != nil {
			l.t.Fatal(err)
		}
	}
	for i := range sites {
		l.addSite(i, func(id string) string {
			register(id, "token-of-"+id)
			return "token-of-" + id
		})
	}
	var rows [][]row
	for _, name := range recordings {
		rows = append(rows, loadRecording(l.t, name))
	}
	var relays []*netlab.Relay
	for i := range arenaGroups {
		relays = append(relays, l.relay(net.IPv4(127, 0, 2, byte(1+i))))
	}
	for i := range n {
		v := &arena{id: fmt.Sprintf("league-%03d", i), source: newMemorySource(), requests: i%8 == 7,
			recording: rows[i%len(rows)], blocks: map[uint64]sentBlock{}, next: 1, keeps: i%25 == 0}
		v.at = i * 997 * blockRows % len(v.recording)
		o := uplink.Defaults()
		// A session that lasted so long counts as one that lasted a minute: here
		// something stops each few seconds, and not each month.
		o.StableAfter = 10 * time.Second
		o.Gateway, o.Software = v.id, "touchline/cluster"
		o.URLs = []string{"wss://" + relays[i%len(relays)].Addr()}
		if v.requests {
			o.URLs = []string{"ws://" + l.blocked.Listener.Addr().String()}
			o.BackoffCap = 4 * time.Second // it is refused three times first, half of this apart
		}
		token := "token-of-" + v.id
		o.Token = func() (string, error) { return token, nil }
		o.TLS = func(string, *x509.CertPool) *tls.Config {
			return &tls.Config{ServerName: "127.0.0.1", RootCAs: l.roots, MinVersion: tls.VersionTLS12}
		}
		if v.uplink, err = uplink.New(o, v.source, slog.New(slog.DiscardHandler)); err != nil {
			l.t.Fatal(err)
		}
		register(v.id, token)
		l.arenas = append(l.arenas, v)
	}
}

// relay leads from an address of its own to the load balancer.
func (l *league) relay(own net.IP) *netlab.Relay {
	l.t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: own})
	if err != nil {
		l.t.Fatal(err)
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: own}}
	r := netlab.NewRelay(listener, netlab.RelayOptions{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", l.port))
	}})
	l.t.Cleanup(func() { r.Close() })
	return r
}

// play hands out the next block of the recording, as of now: its times are those of
// the recording, pressed into a second where they take longer. One goroutine calls it.
func (v *arena) play() error {
	rows := slices.Clone(v.recording[v.at:min(v.at+blockRows, len(v.recording))])
	v.at = (v.at + len(rows)) % len(v.recording)
	begin, now := rows[0].time, time.Now().UnixNano()
	span := max(rows[len(rows)-1].time-begin, int64(time.Second))
	samples := make([]touchline.Sample, len(rows))
	for i := range rows {
		r := &rows[i]
		r.time = now + int64(float64(r.time-begin)/float64(span)*float64(time.Second))
		samples[i] = touchline.Sample{Sensor: r.sensor, Metric: r.metric, Unit: r.unit, Time: r.time, Value: touchline.NumberValue(r.value)}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	b, err := v.source.push(samples)
	if err != nil {
		return fmt.Errorf("play %s: %w", v.id, err)
	}
	v.blocks[b.First] = sentBlock{b.Count, sha256.Sum256(b.Data)}
	v.next = b.Last() + 1
	if v.keeps {
		v.read = append(v.read, rows...)
	}
	return nil
}

// played returns the number after the last sample that was handed out.
func (v *arena) played() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.next
}

// told returns what the cloud has called stored.
func (v *arena) told() touchline.Ranges {
	v.source.mu.Lock()
	defer v.source.mu.Unlock()
	return v.source.stored.Clone()
}

// hasAll says whether all below next was called stored.
func (v *arena) hasAll(next uint64) bool {
	v.source.mu.Lock()
	defer v.source.mu.Unlock()
	return next == 1 || v.source.stored.Contains(touchline.Range{First: 1, Last: next - 1})
}

// play has all gateways send a block in each interval, each at its own time, until
// the league ends.
func (l *league) play(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	begin, done := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		due := int(time.Since(begin) * time.Duration(len(l.arenas)) / interval)
		// What a machine that stood still has missed is not made up for at once.
		done = max(done, due-len(l.arenas))
		for ; done < due; done++ {
			if err := l.arenas[done%len(l.arenas)].play(); err != nil {
				l.t.Error(err)
				return
			}
		}
	}
}
