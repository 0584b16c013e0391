package jetstream

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"touchline/cloud"
	"touchline/wire"
)

func (c *servers) bus() BusOptions {
	o := c.queue()
	return BusOptions{Servers: o.Servers, Store: o.Store}
}

// openBus opens a bus and runs it.
func openBus(t *testing.T, opts BusOptions) *Bus {
	t.Helper()
	b, err := OpenBus(opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for range 2 {
			if err := b.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	return b
}

// A listener writes down what it hears.
type listener struct {
	t     *testing.T
	mu    sync.Mutex // covers heard
	heard []cloud.Recorded
	wake  chan struct{}
}

func follow(t *testing.T, b *Bus) (l *listener, unfollow func()) {
	t.Helper()
	l = &listener{t: t, wake: make(chan struct{}, 1)}
	unfollow, err := b.Follow(l.hear)
	if err != nil {
		t.Fatal(err)
	}
	unfollow = sync.OnceFunc(unfollow)
	t.Cleanup(unfollow)
	return l, unfollow
}

func (l *listener) hear(list []cloud.Recorded) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, list...)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *listener) list() []cloud.Recorded {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.heard)
}

// until waits until it has heard the last of want, and wants exactly want then.
func (l *listener) until(want []cloud.Recorded) {
	l.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	last := shownAs(want[len(want)-1:])
	for !slices.Equal(shownAs(l.newest()), last) {
		select {
		case <-l.wake:
		case <-timer.C:
			l.t.Fatalf("%d of %d blocks were heard, and not the last one", len(l.list()), len(want))
		}
	}
	if got, want := shownAs(l.list()), shownAs(want); !slices.Equal(got, want) {
		l.t.Fatalf("%d blocks were heard, which are not the %d that were published, in order:\n%.300s\n%.300s", len(got), len(want), got, want)
	}
}

// newest is a list of the last that was heard.
func (l *listener) newest() []cloud.Recorded {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.heard[max(0, len(l.heard)-1):])
}

func shownAs(list []cloud.Recorded) (text []string) {
	for _, r := range list {
		text = append(text, fmt.Sprint(r.Gateway, r.Lane, r.Received.UnixNano(), r.Block))
	}
	return text
}

// recorded are n blocks of one gateway, whose name has each kind of sign.
func recorded(t *testing.T, n int) (list []cloud.Recorded) {
	for i := range n {
		d := delivery(t, 40*i)
		list = append(list, cloud.Recorded{Gateway: "Arena.7_north-west", Lane: wire.Lane(i % 2), Received: time.Unix(0, int64(1e18+i)), Block: d.Block})
	}
	return list
}

// All that a process publishes is heard there and elsewhere, whole, in order and
// once; and nothing by one who follows no more, or is of another record store.
func TestBus_CarriesWhatIsRecordedToEachFollowerOnce(t *testing.T) {
	opts := startServers(t, 1, true).bus()
	here, there := openBus(t, opts), openBus(t, opts)
	opts.Store = "store-2"
	elsewhere := openBus(t, opts)
	for _, b := range []*Bus{here, there, elsewhere} {
		connected(t, b)
	}
	mine, _ := follow(t, here)
	other, _ := follow(t, there)
	foreign, _ := follow(t, elsewhere)
	left, unfollow := follow(t, there)
	unfollow()
	list := recorded(t, 3000) // several messages, some of several thousand blocks
	for part := range slices.Chunk(list, 500) {
		here.Publish(part)
	}
	mine.until(list)
	other.until(list)
	if heard := len(foreign.list()) + len(left.list()); heard > 0 {
		t.Errorf("%d blocks were heard by who should hear none", heard)
	}
	if here.Dropped()+there.Dropped() > 0 {
		t.Errorf("%d and %d are counted as dropped", here.Dropped(), there.Dropped())
	}
}

// connected waits until a bus has its server.
func connected(t *testing.T, b *Bus) {
	t.Helper()
	for deadline := time.Now().Add(patience); !b.conn.IsConnected(); pause(t.Context(), 5*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the bus does not connect")
		}
	}
}

// A bus without its server opens, and serves its own process; what others miss is
// counted; and once the server is there, they hear.
func TestBus_WithoutItsServerIsABusOfOneProcess(t *testing.T) {
	c := startServers(t, 1, true)
	c.stop(0)
	here, there := openBus(t, c.bus()), openBus(t, c.bus())
	mine, _ := follow(t, here)
	other, _ := follow(t, there)
	list := recorded(t, 20)
	here.Publish(list[:10])
	mine.until(list[:10])
	for deadline := time.Now().Add(patience); here.Dropped() < 10; pause(t.Context(), 5*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d blocks are counted as dropped: want 10", here.Dropped())
		}
	}
	c.start(0)
	connected(t, here)
	connected(t, there)
	if err := there.conn.FlushTimeout(patience); err != nil { // it says again whom it follows
		t.Fatal(err)
	}
	here.Publish(list[10:])
	other.until(list[10:])
	mine.until(list)
}

// Publish waits for nobody: with nobody to send, the oldest go.
func TestBus_WhatWaitsToBeSentIsBounded(t *testing.T) {
	b, err := OpenBus(startServers(t, 1, true).bus(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := recorded(t, 1)[0]
	r.Block.Data = make([]byte, wire.MaxBlockBytes)
	for n := range 100 { // 19 MB
		r.Block.First = uint64(n + 1)
		b.Publish([]cloud.Recorded{r})
		if b.bytes > maxBusWaiting {
			t.Fatalf("%d bytes wait", b.bytes)
		}
	}
	if n := len(b.waiting); n < 40 || b.waiting[n-1].Block.First != 100 || b.Dropped() != uint64(100-n) {
		t.Errorf("%d blocks wait, the last is %d; %d are counted as dropped", n, b.waiting[n-1].Block.First, b.Dropped())
	}
}
