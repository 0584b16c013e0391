package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"touchline/archive"
	"touchline/wire"
)

// Limits of taking archives from gateways.
const (
	// maxExcerpts at a time: each holds up to 1 MiB here, and as much in the
	// queue, whose limit it waits for.
	maxExcerpts = 4
	// recordPatience bounds the wait for its commit.
	recordPatience = 30 * time.Second
)

// archives takes segments of archives that one gateway carries for another.
// The carrier's token opens the door, no more: each segment proves by its
// signature whose it is, and is recorded as that gateway's, by the code and in
// the transactions that record uplinks.
type archives struct {
	in    *ingest
	slots chan struct{}
}

func newArchives(in *ingest) *archives {
	return &archives{in: in, slots: make(chan struct{}, maxExcerpts)}
}

func (a *archives) serve(w http.ResponseWriter, r *http.Request) {
	carrier, ok := a.in.authenticate(w, r)
	if !ok {
		return
	}
	control := http.NewResponseController(w)
	now := time.Now()
	_ = control.SetReadDeadline(now.Add(a.in.opts.Timeouts.Archive))
	_ = control.SetWriteDeadline(now.Add(a.in.opts.Timeouts.Archive + 2*recordPatience))
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	default:
		w.Header().Set("Retry-After", "5")
		problem(w, http.StatusServiceUnavailable, "other gateways send archives now")
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(archive.MaxExcerptBytes)))
	if err != nil {
		problem(w, http.StatusBadRequest, fmt.Sprintf("read the segment: %.200s", err))
		return
	}
	h, seg, err := archive.ReadExcerpt(data)
	if err != nil {
		problem(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), recordPatience)
	defer cancel()
	switch err := trust(ctx, a.in.store)(h); {
	case errors.Is(err, ErrUnknownKey):
		a.in.warn(r, "an archive came that is signed with an unknown key", h.Gateway, nil)
		problem(w, http.StatusForbidden, err.Error())
		return
	case err != nil:
		a.unavailable(w, err)
		return
	}
	if err := a.take(ctx, h, &seg); err != nil {
		a.unavailable(w, err)
		return
	}
	a.in.log.Info("segment of an archive is stored", "gateway", h.Gateway, "carrier", carrier.gateway, "archive", h.ID.String(),
		"segment", seg.Index, "blocks", len(seg.Blocks), "lost_records", len(seg.Lost))
	writeJSON(w, "application/json", http.StatusOK, map[string]any{"stored": true, "store": a.in.store.ID()})
}

func (a *archives) unavailable(w http.ResponseWriter, err error) {
	a.in.log.Warn("a segment of an archive can't be stored now; its carrier sends it again", "error", err)
	w.Header().Set("Retry-After", "5")
	problem(w, http.StatusServiceUnavailable, "the record store does not take the segment now: send it again")
}

// take returns nil when all of the segment is stored.
func (a *archives) take(ctx context.Context, h archive.Header, seg *archive.Segment) error {
	wait := newAwaited(len(seg.Blocks))
	received := time.Now()
	for i := range seg.Blocks {
		b := seg.Blocks[i]
		b.Data = bytes.Clone(b.Data) // exactly its size, so that the queue's account is the truth
		if err := a.in.batcher.submit(ctx, Delivery{Gateway: h.Gateway, Block: b, Lane: wire.Backlog, Received: received}, wait); err != nil {
			return fmt.Errorf("queue block: %w", err)
		}
	}
	if err := wait.result(ctx); err != nil {
		return err
	}
	if a.in.queue != nil {
		if err := a.awaitStored(ctx, h.Gateway, seg); err != nil {
			return err
		}
	}
	for _, l := range seg.Lost {
		if err := a.in.store.Lost(ctx, h.Gateway, 0, l); err != nil {
			return err
		}
		a.in.stats.lostSamples.Add(l.Ranges.Count())
	}
	return nil
}

// awaitStored returns when the record store has all blocks of a segment that the
// queue holds. It asks, since a carrier's node need not be the one that hears of that gateway.
func (a *archives) awaitStored(ctx context.Context, gateway string, seg *archive.Segment) error {
	var want accepted
	now := time.Now()
	for i := range seg.Blocks {
		want.await(&seg.Blocks[i])
		want.accept(&seg.Blocks[i], now)
	}
	for wait := a.in.timing.retryMin; ; wait = min(2*wait, time.Second) {
		stored, err := a.in.store.Stored(ctx, gateway, want.epochs())
		if err != nil {
			return fmt.Errorf("read what is stored: %w", err)
		}
		if want.stored(stored); len(want.epochs()) == 0 {
			return nil
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return fmt.Errorf("wait for commit: %w", ctx.Err())
		}
	}
}

// awaited is the receiver of a segment's blocks.
type awaited struct {
	done chan struct{} // closed when all have an answer

	mu     sync.Mutex // covers what follows
	left   int
	failed error
}

func newAwaited(blocks int) *awaited {
	a := &awaited{done: make(chan struct{}), left: blocks}
	if blocks == 0 {
		close(a.done)
	}
	return a
}

func (a *awaited) answer(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.failed = err
	}
	if a.left--; a.left == 0 {
		close(a.done)
	}
}

func (a *awaited) stored(*wire.Block) { a.answer(nil) }

// accepted: awaitStored waits for the rest.
func (a *awaited) accepted(*wire.Block) { a.answer(nil) }

// forget: its gateway is back and sends the block itself. Whether that is
// stored is told to it; the carrier asks again.
func (a *awaited) forget(*wire.Block) {
	a.answer(errors.New("a block comes from its gateway at the same time"))
}

func (a *awaited) refuse(b *wire.Block) {
	a.answer(fmt.Errorf("the record store does not take block %s/%d", b.Epoch, b.First))
}

func (a *awaited) result(ctx context.Context) error {
	select {
	case <-a.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for commit: %w", ctx.Err())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}
