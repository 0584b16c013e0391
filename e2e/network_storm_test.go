package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/cloud/sqlite"
	"touchline/internal/netlab"
	"touchline/uplink"
	"touchline/wire"
)

// TestNetwork_StormComesBackAndResumes connects very many gateways to one cloud,
// each with the real uplink and a source in memory, and takes it away from all
// of them at once: first by a network that resets every connection, then by
// kill -9. All must come back and have their blocks stored once.
func TestNetwork_StormComesBackAndResumes(t *testing.T) {
	// 2,000 gateways are 6,000 descriptors in this process, of 20,000, and
	// 16,000 goroutines: the race detector takes half of that.
	gateways, away, limit := 200, time.Second, 80
	options := uplink.Defaults()
	if long() {
		// All that is still to come, as if the outage had been a long one: the
		// waits before have grown to a minute.
		gateways, away, limit = 2000, 70*time.Second, 100
	} else {
		options.BackoffCap = 2 * time.Second
	}
	f := newFleet(t, gateways, options)
	f.limit = limit
	editFile(t, f.cloudConfig, "data = ", fmt.Sprintf("limits.handshakes = %d\ndata = ", limit))
	f.startCloud()
	begin := time.Now()
	f.run()
	f.gather("at the first connection", begin, nil)

	f.addBlocks()
	before := f.handshakes()
	begin = time.Now()
	for _, r := range f.relays {
		r.Cut()
	}
	f.gather("after all connections were reset", begin, before)

	f.site.cloud.expected = true
	f.site.cloud.kill()
	f.addBlocks()
	pause(t.Context(), away) // so long nobody gets in: waits have doubled
	f.startCloud()
	f.gather(fmt.Sprintf("after kill -9 and %v without the cloud", away), time.Now(), nil)
	f.stop()

	v := &verdict{stored: f.samples()}
	f.site.cloud.terminate()
	f.auditFile(v)
	if !v.holds() || v.epochs != gateways {
		t.Errorf("%d epochs of %d: %s", v.epochs, gateways, v)
	}
}

// A fleet is a cloud and very many gateways, in groups behind relays of which
// each has a loopback address of its own: one address has 28,000 ports only.
type fleet struct {
	*site
	limit    int // handshakes that the cloud takes in a second
	relays   []*netlab.Relay
	members  []*member
	cancel   context.CancelFunc
	ended    sync.WaitGroup
	sessions uint64 // of each member, that gather waits for
}

type member struct {
	uplink *uplink.Uplink
	source *memorySource
}

const fleetGroups = 8

func newFleet(t *testing.T, gateways int, options uplink.Options) *fleet {
	t.Helper()
	f := &fleet{site: newSite(t, "")}
	for i := range fleetGroups {
		own := net.IPv4(127, 0, 1, byte(1+i))
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: own})
		if err != nil {
			t.Fatal(err)
		}
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: own}}
		r := netlab.NewRelay(l, netlab.RelayOptions{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", f.cloudPort))
		}})
		t.Cleanup(func() { r.Close() })
		f.relays = append(f.relays, r)
	}
	store, err := sqlite.Open(t.Context(), f.cloudData, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for i := range gateways {
		o, token := options, fmt.Sprintf("token-%d", i)
		o.Gateway, o.Software = fmt.Sprintf("venue-%d", i+1000), "touchline/storm"
		o.URLs = []string{"ws://" + f.relays[i%fleetGroups].Addr()}
		o.Token = func() (string, error) { return token, nil }
		if err := store.AddGateway(t.Context(), o.Gateway, sha256.Sum256([]byte(token))); err != nil {
			t.Fatal(err)
		}
		m := &member{source: newMemorySource()}
		if m.uplink, err = uplink.New(o, m.source, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		f.members = append(f.members, m)
	}
	f.addBlocks()
	return f
}

// run starts all uplinks; they end with stop, or the test.
func (f *fleet) run() {
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	for _, m := range f.members {
		f.ended.Go(func() {
			if err := m.uplink.Run(ctx); err != nil {
				f.t.Error(err)
			}
		})
	}
	f.t.Cleanup(f.stop)
}

func (f *fleet) stop() {
	f.cancel()
	f.ended.Wait()
}

func (f *fleet) addBlocks() {
	for _, m := range f.members {
		m.source.add(f.t)
	}
}

// samples returns how many samples all members have had.
func (f *fleet) samples() (n uint64) {
	for _, m := range f.members {
		n += m.source.next - 1
	}
	return n
}

// gather waits until every member has a new session and nothing left to send,
// and prints how the cloud fared; before is what its counters had at begin.
func (f *fleet) gather(what string, begin time.Time, before map[string]int) {
	f.t.Helper()
	f.sessions++
	back := make([]time.Duration, len(f.members)) // 0 is not yet
	rate := handshakeRate{t: f.t, limit: f.limit}
	rate.add(begin, begin, before)
	nextLook := begin
	waitFor(f.t, "all gateways to be back "+what, func() bool {
		now := time.Now()
		if now.After(nextLook) {
			counts := f.handshakes()
			rate.add(now, time.Now(), counts)
			nextLook = now.Add(100 * time.Millisecond)
		}
		missing := 0
		for i, m := range f.members {
			if back[i] == 0 {
				if st := m.uplink.Stats(); st.State == uplink.Connected && st.Sessions >= f.sessions {
					back[i] = now.Sub(begin)
				}
			}
			if back[i] == 0 || m.source.left() > 0 {
				missing++
			}
		}
		return missing == 0
	})
	stored := time.Since(begin)
	for _, m := range f.members { // who was faster than the others may have had two
		f.sessions = max(f.sessions, m.uplink.Stats().Sessions)
	}
	slices.Sort(back)
	longest := back[len(back)-1]
	f.t.Logf("MEASURED storm, %s: %d gateways; back after %.1f s (half), %.1f s (99 of 100), %.1f s (all), all stored after %.1f s; limit %d handshakes/s, the cloud let in at most %d in a second, asked %d to come later; let in: %q",
		what, len(back), back[len(back)/2].Seconds(), back[len(back)*99/100].Seconds(), longest.Seconds(), stored.Seconds(), f.limit, rate.peak(), rate.refused(), rate.bySecond())
	if longest > 90*time.Second {
		f.t.Errorf("%s: one gateway was away for %s", what, longest.Round(time.Second))
	}
}

// handshakes returns the cloud's counters by result.
func (f *fleet) handshakes() map[string]int {
	f.t.Helper()
	counts := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(f.get(f.cloudPort, "/metrics")))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), `touchline_cloud_handshakes_total{result="`); ok {
			result, value, _ := strings.Cut(rest, `"} `)
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				f.t.Fatal(err)
			}
			counts[result] = int(n)
		}
	}
	return counts
}

// A handshakeRate holds the cloud's counters against its limit.
type handshakeRate struct {
	t     *testing.T
	limit int
	looks []look
}

// A look was taken between two times.
type look struct {
	from, to          time.Time
	accepted, refused int
}

// add takes the cloud's counters, and compares them with all earlier ones: in
// so many seconds, whole and begun, so many can have been let in.
func (h *handshakeRate) add(from, to time.Time, counts map[string]int) {
	h.t.Helper()
	now := look{from, to, counts["accepted"], counts["too_many"]}
	for _, then := range h.looks {
		seconds := 1 + int(now.to.Sub(then.from)/time.Second)
		if n := now.accepted - then.accepted; n > seconds*h.limit {
			h.t.Errorf("%d gateways were let in within %s: the limit is %d in a second", n, now.to.Sub(then.from), h.limit)
		}
	}
	h.looks = append(h.looks, now)
}

// peak returns the most that were let in between two looks of at most a second.
func (h *handshakeRate) peak() (most int) {
	for i, then := range h.looks {
		for _, now := range h.looks[i:] {
			if now.to.Sub(then.from) <= time.Second {
				most = max(most, now.accepted-then.accepted)
			}
		}
	}
	return most
}

// refused returns how many were asked to come later.
func (h *handshakeRate) refused() int {
	return h.looks[len(h.looks)-1].refused - h.looks[0].refused
}

// bySecond returns how many were let in from each look to the first one that is
// a second later.
func (h *handshakeRate) bySecond() (list []string) {
	last := h.looks[0]
	for i, l := range h.looks {
		if gone := l.to.Sub(last.to); gone >= time.Second || i == len(h.looks)-1 {
			list = append(list, fmt.Sprintf("%d in %.1f s", l.accepted-last.accepted, gone.Seconds()))
			last = l
		}
	}
	return list
}

// A memorySource is a buffer without a disk: one epoch, blocks of ten samples.
type memorySource struct {
	epoch touchline.Epoch
	next  uint64 // number of the next sample; set by push only

	mu      sync.Mutex // covers what follows
	blocks  []wire.Block
	stored  touchline.Ranges
	changed chan struct{} // closed, and made anew, when a block is added
}

func newMemorySource() *memorySource {
	return &memorySource{epoch: touchline.NewEpoch(), next: 1, changed: make(chan struct{})}
}

// storedEncoders are for all tests: one per source would be megabytes.
var storedEncoders = sync.Pool{New: func() any { return wire.NewEncoder() }}

// add adds a block.
func (m *memorySource) add(t *testing.T) {
	t.Helper()
	samples := make([]touchline.Sample, 10)
	for i := range samples {
		samples[i] = touchline.Sample{Sensor: "belt", Metric: "heart_rate", Time: messageTime(int(m.next) + i), Value: touchline.NumberValue(float64(i))}
	}
	if _, err := m.push(samples); err != nil {
		t.Fatal(err)
	}
}

// push adds a block of samples, and returns it.
func (m *memorySource) push(samples []touchline.Sample) (wire.Block, error) {
	encoder := storedEncoders.Get().(*wire.Encoder)
	encoded, err := encoder.Encode(nil, samples)
	storedEncoders.Put(encoder)
	if err != nil {
		return wire.Block{}, err
	}
	b := wire.Block{Epoch: m.epoch, First: m.next, Count: uint32(len(samples)), Data: encoded.Data}
	b.CRC = b.Sum()
	m.next += uint64(len(samples))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocks = append(m.blocks, b)
	close(m.changed)
	m.changed = make(chan struct{})
	return b, nil
}

// Next implements uplink.Source.
func (m *memorySource) Next(ctx context.Context, after touchline.Position, maxBytes int) ([]wire.Block, error) {
	for {
		m.mu.Lock()
		changed := m.changed
		var out []wire.Block
		size := 0
		for _, b := range m.blocks {
			if after.Epoch == m.epoch && b.First <= after.Seq {
				continue
			}
			if size += len(b.Data); len(out) > 0 && size > maxBytes {
				break
			}
			out = append(out, b)
		}
		m.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Ack implements uplink.Source.
func (m *memorySource) Ack(stored []wire.EpochRanges, _ []uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, er := range stored {
		if er.Epoch == m.epoch {
			m.stored.AddAll(er.Ranges)
		}
	}
	m.blocks = slices.DeleteFunc(m.blocks, func(b wire.Block) bool { return m.stored.Contains(b.Range()) })
	return nil
}

// Held implements uplink.Source.
// Reconcile has nothing to bring back: what was stored is gone here.
func (m *memorySource) Reconcile([]wire.EpochRanges) error { return nil }

func (m *memorySource) Held() ([]wire.Held, []wire.Lost) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.blocks) == 0 {
		return nil, nil
	}
	return []wire.Held{{Epoch: m.epoch, Oldest: m.blocks[0].First, Next: m.blocks[len(m.blocks)-1].Last() + 1}}, nil
}

func (m *memorySource) left() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.blocks)
}
