package simulator

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"touchline"
)

// proxyAfter ends the first refuse connections at once and joins later ones
// with the address behind, until the listener is closed.
func proxyAfter(front net.Listener, behind string, refuse int) {
	var joined sync.WaitGroup
	defer joined.Wait()
	for n := 0; ; n++ {
		in, err := front.Accept()
		if err != nil {
			return
		}
		if n < refuse {
			in.Close()
			continue
		}
		out, err := net.Dial("tcp", behind)
		if err != nil {
			in.Close()
			continue
		}
		joined.Go(func() { io.Copy(out, in); out.Close(); in.Close() })
		joined.Go(func() { io.Copy(in, out); out.Close(); in.Close() })
	}
}

// echoLink acknowledges in memory, since time under synctest stands still
// while a real socket is waited for. It remembers when what was sent.
type echoLink struct {
	acked  chan uint64
	sentAt *[]time.Time
	ids    *[]uint64
	mute   map[uint64]bool // not acknowledged on this link
	lose   uint64          // the link is lost behind this id
	closed bool
}

func (l *echoLink) Send(_ context.Context, id uint64, _ []byte) error {
	if l.closed {
		return errNotSent
	}
	*l.sentAt = append(*l.sentAt, time.Now())
	*l.ids = append(*l.ids, id)
	if !l.mute[id] {
		l.acked <- id
	}
	if id == l.lose {
		l.Close()
	}
	return nil
}
func (l *echoLink) Acked() <-chan uint64 { return l.acked }
func (l *echoLink) Err() error           { return errors.New("lost") }
func (l *echoLink) Close() {
	if !l.closed {
		l.closed = true
		close(l.acked)
	}
}

func echoCourier(f feed, links ...*echoLink) (*courier, *[]time.Time, *[]uint64) {
	sentAt, ids := &[]time.Time{}, &[]uint64{}
	c := &courier{sensor: "s", feed: f, window: 4, counters: &counters{}, logger: quiet}
	c.dial = func(context.Context) (link, error) {
		l := &echoLink{}
		if len(links) > 0 {
			l, links = links[0], links[1:]
		}
		l.acked, l.sentAt, l.ids = make(chan uint64, maxWindow), sentAt, ids
		return l, nil
	}
	return c, sentAt, ids
}

func recorded(seconds ...float64) []touchline.Sample {
	var out []touchline.Sample
	for _, s := range seconds {
		out = append(out, touchline.Sample{Sensor: "s", Metric: "x", Time: 1_500_000_000e9 + int64(s*1e9)})
	}
	return out
}

func TestCourier_SendsWhenMessagesAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := &replayFeed{
			samples: recorded(0, 20, 40, 100), batch: 1, limit: newRateLimit(0),
			pace: &pace{began: began, firstNs: 1_500_000_000e9, speed: 10},
		}
		c, sentAt, _ := echoCourier(f)
		if err := c.deliver(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, want := range []time.Duration{0, 2 * time.Second, 4 * time.Second, 10 * time.Second} {
			if got := (*sentAt)[i].Sub(began); got != want {
				t.Errorf("message %d sent after %s: want %s", i, got, want)
			}
		}
	})
}

func TestCourier_HonoursTheRateLimitTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, limit := time.Now(), newRateLimit(10)
		var all []time.Time
		var couriers sync.WaitGroup
		sent := make([]*[]time.Time, 3)
		for i := range sent {
			f := &replayFeed{samples: recorded(make([]float64, 20)...), batch: 2, limit: limit, pace: &pace{began: began}}
			c, sentAt, _ := echoCourier(f)
			sent[i] = sentAt
			couriers.Go(func() {
				if err := c.deliver(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		couriers.Wait()
		for _, s := range sent {
			all = append(all, *s...)
		}
		slices.SortFunc(all, time.Time.Compare)
		for i := range all { // message i has the samples 2i and 2i+1
			if at, want := all[i].Sub(began), time.Duration(i)*200*time.Millisecond; at != want {
				t.Fatalf("message %d of 2 samples left after %s: want %s at 10 samples/s", i, at, want)
			}
		}
	})
}

func TestCourier_SendsTheUnacknowledgedAgainInOrderAndFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &replayFeed{samples: recorded(1, 2, 3, 4, 5, 6), batch: 1, limit: newRateLimit(0), pace: &pace{began: time.Now()}}
		c, _, ids := echoCourier(f, &echoLink{mute: map[uint64]bool{2: true, 4: true}, lose: 4})
		if err := c.deliver(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []uint64{1, 2, 3, 4, 2, 4, 5, 6}; !slices.Equal(*ids, want) {
			t.Errorf("sent %v: want %v", *ids, want)
		}
		if n := c.counters.resentMessages.Load(); n != 2 {
			t.Errorf("%d messages sent again: want 2", n)
		}
	})
}

func TestBackoff_StaysBelowASecond(t *testing.T) {
	var b backoff
	for i := range 1000 {
		if d := b.delay(nil); d < 0 || d >= min(firstBackoff<<min(i, 5), maxBackoff) {
			t.Fatalf("wait %d is %s: want less than a second, and less than %s", i, d, firstBackoff<<min(i, 5))
		}
	}
	for _, asked := range []time.Duration{-time.Second, 0, time.Hour} {
		if d := b.delay(&retryAfterError{after: asked}); d < firstBackoff || d > maxBackoff {
			t.Errorf("asked to wait %s, waits %s", asked, d)
		}
	}
}
