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

// TestNetwork_NewSamplesBesideABacklog opens a slow link to a gateway that has a
// large backlog and goes on measuring, and prints how long a new sample takes
// from its commit to the cloud's store, and how long the backlog takes.
func TestNetwork_NewSamplesBesideABacklog(t *testing.T) {
	for _, tc := range []struct {
		name, setting string // of the gateway's [uplink]
		awaited       string
	}{
		{name: "in order", setting: "live_first = false"},
		{name: "live first", awaited: liveFirst},
	} {
		t.Run(tc.name, func(t *testing.T) {
			await(t, tc.awaited)
			samples, bitsPerSecond := 100_000, 2_000_000
			if long() {
				samples, bitsPerSecond = 1_000_000, 10_000_000
			}
			v := newVenue(t, 15*time.Second)
			editFile(t, v.gatewayConfig, "reconnect_min", tc.setting+"\nreconnect_min")
			v.cable()
			check(t, v.gatewayEnd().Limit(bitsPerSecond, 200*time.Millisecond))
			v.run()
			v.session()
			check(t, v.cloudNet.Drop(netlab.Input, fmt.Sprintf("iifname %q", v.cloudEnd().Device)))
			v.postBacklog(samples)

			live := v.measureLive()
			check(t, v.cloudNet.Heal())
			begin := time.Now()
			waitFor(t, "the backlog to drain", func() bool { return v.cloudHas("backlog", samples-1) })
			drained := time.Since(begin)
			during := live.conclude()
			v.drained()
			t.Logf("MEASURED %s with a backlog of %d samples over %d kbit/s: backlog stored after %.1f s; of %d new samples at 100/s, from commit to stored: p50 %.0f ms, p99 %.0f ms, worst %.0f ms",
				tc.name, samples, bitsPerSecond/1000, drained.Seconds(), len(during), quantile(during, 0.5), quantile(during, 0.99), quantile(during, 1))

			result := &verdict{stored: uint64(samples + live.sent)}
			v.cloud.terminate()
			v.auditFile(result)
			if !result.holds() || result.epochs != 1 {
				t.Errorf("%d epochs: %s", result.epochs, result)
			}
		})
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

// A liveMeter sends 100 samples a second and notes when each was committed in
// the gateway and when it was seen in the cloud.
type liveMeter struct {
	v      *venue
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu        sync.Mutex // covers what follows
	sent      int
	committed []time.Time // by number
	stored    []time.Time
}

func (v *venue) measureLive() *liveMeter {
	ctx, cancel := context.WithCancel(context.Background())
	m := &liveMeter{v: v, cancel: cancel}
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
	tick := time.NewTicker(10 * time.Millisecond)
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
	took := make([]float64, m.sent)
	for i := range took {
		took[i] = max(0, m.stored[i].Sub(m.committed[i]).Seconds()*1000)
	}
	slices.Sort(took)
	return took
}
