package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/wire"
)

// An ingest is the load on a node: gateways that send blocks of recordings.
type ingest struct {
	feeds   []*feed
	readers sync.WaitGroup
}

// A feed is one of its gateways. One goroutine sends and one reads.
type feed struct {
	session *session
	epoch   touchline.Epoch

	// Used by the sender only.
	blocks []packed // again and again
	at     int      // in blocks
	first  uint64   // number of the next sample

	mu      sync.Mutex // covers what follows
	changed *sync.Cond // of mu: less is in flight, another window came, or the session has ended
	window  wire.Window
	flying  []flight // in the order of their numbers
	bytes   int      // of flying
	stored  int64    // samples
	latency *histogram
	over    error // why the session ended
}

// A flight is a block that was sent and is not stored yet.
type flight struct {
	numbers touchline.Range
	bytes   int
	due     time.Time
}

// startIngest begins a session for each gateway that the node knows.
func startIngest(ctx context.Context, n *cloudNode, blocks []packed) (*ingest, error) {
	in := &ingest{feeds: make([]*feed, n.roll.Count)}
	group, dialing := errgroup.WithContext(ctx)
	for i := range in.feeds {
		group.Go(func() error {
			f := &feed{epoch: touchline.NewEpoch(), blocks: blocks, at: i * len(blocks) / len(in.feeds), first: 1, latency: &histogram{}}
			f.changed = sync.NewCond(&f.mu)
			var err error
			f.session, err = call{address: n.address, gateway: n.roll.id(i), token: n.roll.token(i), epoch: f.epoch, buffer: 64 << 10}.open(dialing)
			if err != nil {
				return err
			}
			f.window = f.session.welcome.Window
			in.feeds[i] = f
			return nil
		})
	}
	err := group.Wait()
	for _, f := range in.feeds {
		if f != nil {
			in.readers.Go(f.read)
		}
	}
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// close ends the sessions and waits. It may be called twice.
func (in *ingest) close() {
	in.hangUp()
	in.readers.Wait()
}

func (in *ingest) hangUp() {
	for _, f := range in.feeds {
		if f != nil {
			f.session.conn.Close()
		}
	}
}

// A pace is how a load goes on: blocks a second of all gateways together, or 0
// for as fast as the windows let them.
type pace struct {
	blocks float64
	until  time.Time
}

// run sends until the pace is over, one block from each gateway at least, and
// returns the latencies when all has been stored: from when a block was due to the ack
// that calls it stored. It ends the sessions with ctx, and where that takes too long.
func (in *ingest) run(ctx context.Context, p pace) (*histogram, error) {
	patience := time.AfterFunc(time.Until(p.until)+ackTimeout, in.hangUp)
	defer patience.Stop()
	defer context.AfterFunc(ctx, in.hangUp)()
	var group errgroup.Group
	for i, f := range in.feeds {
		group.Go(func() error {
			return errors.Join(f.send(ctx, p, place{i, len(in.feeds)}), f.landed())
		})
	}
	err := group.Wait()
	latency := &histogram{}
	for _, f := range in.feeds {
		f.mu.Lock()
		latency.merge(f.latency)
		f.latency = &histogram{}
		f.mu.Unlock()
	}
	return latency, err
}

// stored returns how many samples the gateways were told to be stored.
func (in *ingest) stored() (samples int64) {
	for _, f := range in.feeds {
		f.mu.Lock()
		samples += f.stored
		f.mu.Unlock()
	}
	return samples
}

// A place is that of a feed among all, which spread their blocks over an interval.
type place struct{ n, of int }

// send writes a frame for each block. At a pace each is due at its time, whether
// the one before it has left or not: waiting for a window is latency.
func (f *feed) send(ctx context.Context, p pace, at place) error {
	var every time.Duration
	due := time.Now()
	if p.blocks > 0 {
		every = time.Duration(float64(time.Second) * float64(at.of) / p.blocks)
		due = due.Add(every * time.Duration(at.n) / time.Duration(at.of))
	}
	var frame []byte
	for sent := 0; sent == 0 || due.Before(p.until); due = due.Add(every) {
		if every > 0 {
			if err := sleep(ctx, time.Until(due)); err != nil {
				return err
			}
		}
		block := f.blocks[f.at%len(f.blocks)]
		b := wire.Block{Epoch: f.epoch, First: f.first, Count: uint32(len(block.samples)), Data: block.data}
		b.CRC = b.Sum()
		if every == 0 {
			due = f.takeOff(&b, time.Time{})
		} else {
			f.takeOff(&b, due)
		}
		f.at, f.first = f.at+1, f.first+uint64(b.Count)
		var err error
		if frame, err = wire.AppendFrame(frame[:0], []wire.FrameBlock{{Block: b}}); err != nil {
			return err
		}
		if err := f.session.conn.WriteMessage(websocket.BinaryMessage, frame); err != nil {
			return fmt.Errorf("send a block: %w", err)
		}
		sent++
	}
	return nil
}

// takeOff waits until the window has room for a block and counts it as in
// flight, since due, or since there was room with a zero time, which it returns.
func (f *feed) takeOff(b *wire.Block, due time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.over == nil && !f.fits(b) {
		f.changed.Wait()
	}
	if due.IsZero() {
		due = time.Now()
	}
	f.flying = append(f.flying, flight{b.Range(), len(b.Data), due})
	f.bytes += len(b.Data)
	return due
}

// fits: one block may always be in flight, unless the cloud has gateways pause.
func (f *feed) fits(b *wire.Block) bool {
	if f.window.Bytes == 0 || f.window.Blocks == 0 {
		return false
	}
	return len(f.flying) == 0 || len(f.flying) < f.window.Blocks && f.bytes+len(b.Data) <= f.window.Bytes
}

// landed returns when all that was sent is stored.
func (f *feed) landed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.over == nil && len(f.flying) > 0 {
		f.changed.Wait()
	}
	if len(f.flying) > 0 {
		return fmt.Errorf("%d blocks were not stored: %w", len(f.flying), f.over)
	}
	return nil
}

// read takes what the cloud says until the session ends.
func (f *feed) read() {
	for {
		m, err := f.session.hear()
		now := time.Now()
		f.mu.Lock()
		switch m := m.(type) {
		case *wire.Ack:
			for _, er := range m.Stored {
				f.land(er, now)
			}
		case *wire.NewWindow:
			f.window = m.Window
		case *wire.Resend:
			err = errors.New("the cloud says that a block arrived damaged")
		}
		f.over = err
		f.changed.Broadcast()
		f.mu.Unlock()
		if err != nil {
			f.session.conn.Close()
			return
		}
	}
}

// land takes what is stored out of flight. f.mu is held.
func (f *feed) land(er wire.EpochRanges, now time.Time) {
	if er.Epoch != f.epoch {
		return
	}
	still := f.flying[:0]
	for _, b := range f.flying {
		if !er.Ranges.Contains(b.numbers) {
			still = append(still, b)
			continue
		}
		f.bytes -= b.bytes
		f.stored += int64(b.numbers.Last - b.numbers.First + 1)
		f.latency.add(now.Sub(b.due).Microseconds())
	}
	f.flying = still
}
