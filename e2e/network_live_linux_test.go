package e2e

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"touchline/internal/netlab"
)

// TestNetwork_NewSamplesBesideABacklog gives a gateway that has a large backlog
// its link back, and prints how long a new sample takes from its commit to the
// cloud's store, and how long the backlog takes. The link is slow; the
// connection of before was given up, so what is measured is what the uplink
// does, and not how long TCP waits after an outage to send again.
func TestNetwork_NewSamplesBesideABacklog(t *testing.T) {
	links := []slowLink{{samples: 100_000, bitsPerSecond: 2_000_000}}
	if long() {
		links = []slowLink{
			{samples: 1_000_000, bitsPerSecond: 10_000_000},
			{samples: 3_000_000, bitsPerSecond: 10_000_000},
			{samples: 100_000, bitsPerSecond: 256_000},
			{samples: 40_000, bitsPerSecond: 64_000, every: 100 * time.Millisecond, noControl: true},
		}
	}
	for _, l := range links {
		for _, tc := range []struct {
			name, setting string // of the gateway's [uplink]
			awaited       string
		}{
			{name: "in order", setting: "live_first = false"},
			{name: "live first", awaited: liveFirst},
		} {
			if l.noControl && tc.setting != "" {
				continue
			}
			t.Run(fmt.Sprintf("%s, %d samples, %d kbit", tc.name, l.samples, l.bitsPerSecond/1000), func(t *testing.T) {
				await(t, tc.awaited)
				l.besideABacklog(t, tc.name, tc.setting)
			})
		}
	}
}

// A slowLink has a backlog before it.
type slowLink struct {
	samples       int
	bitsPerSecond int
	every         time.Duration // a new sample; 10 ms where it is 0
	noControl     bool          // in order: pings wait behind more than two heartbeats of data, and it never ends
}

func (l slowLink) besideABacklog(t *testing.T, name, setting string) {
	every := max(l.every, 10*time.Millisecond)
	v := newVenue(t, 3*time.Second)
	editFile(t, v.gatewayConfig, "reconnect_min", setting+"\nreconnect_min")
	v.cable()
	check(t, v.gatewayEnd().Limit(l.bitsPerSecond, 200*time.Millisecond))
	v.run()
	session := v.session()
	check(t, v.cloudNet.Drop(netlab.Input, fmt.Sprintf("iifname %q", v.cloudEnd().Device)))
	v.postBacklog(l.samples)
	v.lost(session)

	check(t, v.cloudNet.Heal())
	begin := time.Now()
	v.sessionAfter(session)
	live := v.measureLive(every)
	waitLong(t, "the backlog to drain", func() bool { return v.cloudHas("backlog", l.samples-1) })
	drained := time.Since(begin)
	during := live.conclude()
	v.drained()
	st := v.status()
	t.Logf("MEASURED %s with a backlog of %d samples over %d kbit/s: backlog stored after %.1f s; of %d new samples, one each %v, from commit to stored: p50 %.0f ms, p99 %.0f ms, worst %.0f ms (which was %.1f s after the first); worst round trip %.0f ms, %d blocks sent again",
		name, l.samples, l.bitsPerSecond/1000, drained.Seconds(), len(during), every, quantile(during, 0.5), quantile(during, 0.99), quantile(during, 1),
		live.worst.Seconds(), 1000*st.Uplink.RTTWorst, st.Uplink.Resent)

	result := &verdict{stored: uint64(l.samples + live.sent)}
	v.cloud.terminate()
	v.auditFile(result)
	if !result.holds() || result.epochs != 1 {
		t.Errorf("%d epochs: %s", result.epochs, result)
	}
}

// waitLong is waitFor for what a slow link takes long for: it fails where
// nothing moves, which the audit would not see.
func waitLong(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for begin := time.Now(); !ready(); {
		if time.Since(begin) > 10*time.Minute {
			t.Fatalf("waited 10 minutes for %s", what)
		}
		pause(t.Context(), 50*time.Millisecond)
	}
}

// cloudHas says whether the cloud has the sample of that sensor and number.
func (v *venue) cloudHas(sensor string, number int) bool {
	v.t.Helper()
	rows, err := v.rowsFrom(sensor, number)
	return err == nil && rows > 0
}

// rowsFrom counts what the cloud has of a sensor from a number on.
func (v *venue) rowsFrom(sensor string, number int) (rows int, err error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/v1/samples?format=csv&sensor=%s&from=%d", v.cloudPort, sensor, messageTime(number)))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := csv.NewReader(resp.Body)
	for rows = -1; ; rows++ { // the header is none
		if _, err := lines.Read(); errors.Is(err, io.EOF) {
			return max(rows, 0), nil
		} else if err != nil {
			return 0, err
		}
	}
}

// A liveMeter sends a sample at a time and notes when each was committed in
// the gateway and when it was seen in the cloud.
type liveMeter struct {
	v      *venue
	every  time.Duration
	cancel context.CancelFunc
	ended  sync.WaitGroup
	worst  time.Duration // when the slowest was committed, after the first

	mu        sync.Mutex // covers what follows
	sent      int
	committed []time.Time // by number
	stored    []time.Time
}

func (v *venue) measureLive(every time.Duration) *liveMeter {
	ctx, cancel := context.WithCancel(context.Background())
	m := &liveMeter{v: v, every: every, cancel: cancel}
	link, err := dialStream(ctx, v.http, "live")
	if err != nil {
		v.t.Fatal(err)
	}
	m.ended.Go(func() { m.send(ctx, link) })
	m.ended.Go(func() { m.hear(link) })
	m.ended.Go(func() { m.look(ctx) })
	v.t.Cleanup(func() {
		cancel()
		m.ended.Wait()
	})
	return m
}

// send ends with ctx, and waits for what is not committed yet.
func (m *liveMeter) send(ctx context.Context, link link) {
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	for number := 0; ; number++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			for open := true; open; {
				pause(context.Background(), 5*time.Millisecond)
				m.mu.Lock()
				open = len(m.committed) < m.sent
				m.mu.Unlock()
			}
			link.close()
			return
		}
		m.mu.Lock()
		m.sent++
		m.mu.Unlock()
		body := fmt.Appendf(nil, `{"t":%d,"v":%s}`, messageTime(number), strconv.Itoa(number))
		if err := link.send(number, body, false); err != nil {
			m.v.t.Errorf("send: %v", err)
			return
		}
	}
}

// hear notes commits: answers come in the order of the messages.
func (m *liveMeter) hear(link link) {
	for {
		answers, err := link.answers()
		now := time.Now()
		m.mu.Lock()
		for range answers {
			m.committed = append(m.committed, now)
		}
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// look asks the cloud every 20 ms, which is how exact its times are. A sensor's
// samples are stored in order.
func (m *liveMeter) look(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, 20*time.Millisecond)
		m.lookOnce()
	}
}

func (m *liveMeter) lookOnce() {
	rows, err := m.v.rowsFrom("live", len(m.stored))
	if err != nil {
		return // the next look sees it
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for range rows {
		m.stored = append(m.stored, now)
	}
}

// conclude stops sending, waits until the cloud has all, and returns the times
// from commit to stored, in milliseconds, ascending.
func (m *liveMeter) conclude() []float64 {
	m.v.t.Helper()
	m.cancel()
	m.ended.Wait()
	waitFor(m.v.t, "the new samples to be stored", func() bool {
		m.lookOnce()
		return len(m.stored) >= m.sent
	})
	took, slowest := make([]float64, m.sent), 0.0
	for i := range took {
		took[i] = max(0, m.stored[i].Sub(m.committed[i]).Seconds()*1000)
		if took[i] > slowest {
			slowest, m.worst = took[i], m.committed[i].Sub(m.committed[0])
		}
	}
	slices.Sort(took)
	return took
}
