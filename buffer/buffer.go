// Package buffer is the gateway's durable middle: it keeps every sample in
// one SQLite file until the cloud said that it has it. What was appended with
// success survives a power cut one instruction later; reading deletes
// nothing; samples are forgotten only by Ack or by a limit that the operator
// set, and then the loss is recorded. Open it, give Run a goroutine, and end
// it by ending Run's context or by Close, which waits for Run.
package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"touchline"
	"touchline/buffer/seen"
	"touchline/internal/folder"
	"touchline/wire"
)

// Options say where a buffer is and what it may take. All of them come from
// config.toml; Open refuses values that are out of bounds, all at once.
type Options struct {
	Dir            string        // folder of the database and its lock; made if it is missing
	MaxBytes       int64         // of blocks held, at least MinMaxBytes
	MaxAge         time.Duration // of blocks held, in running time; 0 keeps them for ever
	FreeReserve    int64         // bytes that stay free on the file system; 0 does not look
	WhenFull       Policy        // what gives way at MaxBytes and FreeReserve
	KeepStored     time.Duration // for which blocks that the cloud stored are kept where there is room, in running time
	KeepAtLeast    time.Duration // the same, for who needs them here: the longer of the two counts
	CommitInterval time.Duration // least time between the starts of two commits; 0 commits as fast as the disk syncs

	// A sample that is the same as one committed within RepeatWindow of
	// running time (sensor, metric, unit, time and value, bit for bit) is a
	// repeat and not stored again; 0 stores it. A sample that the gateway
	// stamped is never one. Samples leave the window early where it would take
	// more than RepeatBytes of memory.
	RepeatWindow time.Duration
	RepeatBytes  int64

	// Uptime is the time since power-on, from which the offsets of arrivals'
	// clocks count; blocks say when they were committed by it. Nil is as good
	// as 0 where arrivals have no clocks.
	Uptime func() time.Duration

	// Working is called by Open while it salvages, for each block and page that
	// it looks at, by its own goroutine; nil tells nobody.
	Working func()

	clock   func() time.Duration                // monotonic; nil is the system's. Tests move it.
	free    func(dir string) (int64, error)     // bytes free for us at dir; nil asks the system
	fault   func(stage string, err error) error // nil outside tests; sees, and may replace, what SQLite said
	steps   asideSteps                          // nil outside tests; sees, and may refuse, each step of setting a file aside
	ballast int64                               // bytes of the ballast; 0 is by the file system, below 0 none
	tick    time.Duration                       // how often an idle buffer looks after itself; 0 is tickInterval
	vfs     string                              // SQLite's way to the disk; "" is defaultVFS. Tests put a disk that fails there.
}

// Bounds of Options.
const (
	// MinMaxBytes leaves room for a few of the largest blocks (192 KiB).
	MinMaxBytes = 1 << 20
	// MinMaxAge is well above the second in which ages are looked at.
	MinMaxAge = 10 * time.Second
	// MaxCommitInterval stays below the patience of sensors, which is some
	// tens of seconds for a PUBACK or an HTTP answer.
	MaxCommitInterval = 10 * time.Second
	// MaxRepeatWindow is far more than a client waits before it sends again.
	// Open reads the blocks of such a time.
	MaxRepeatWindow = 10 * time.Minute
	// MinRepeatBytes holds some 2,500 samples, MaxRepeatBytes 36 million.
	MinRepeatBytes = seen.MinBytes
	MaxRepeatBytes = 1 << 30
)

func (o *Options) check() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("the folder is empty: name one"))
	}
	if o.MaxBytes < MinMaxBytes {
		errs = append(errs, fmt.Errorf("max_bytes is %d: use at least %d", o.MaxBytes, MinMaxBytes))
	}
	if o.MaxAge != 0 && o.MaxAge < MinMaxAge {
		errs = append(errs, fmt.Errorf("max_age is %s: use at least %s, or 0 for no limit", o.MaxAge, MinMaxAge))
	}
	if o.FreeReserve < 0 {
		errs = append(errs, fmt.Errorf("free_reserve is %d: use 0 or more", o.FreeReserve))
	}
	if o.WhenFull != EvictOldest && o.WhenFull != Refuse {
		errs = append(errs, fmt.Errorf("when_full is %s: use %s or %s", o.WhenFull, EvictOldest, Refuse))
	}
	if o.KeepStored < 0 || o.KeepAtLeast < 0 {
		errs = append(errs, fmt.Errorf("keep_stored is %s: use 0 or more", min(o.KeepStored, o.KeepAtLeast)))
	}
	if o.CommitInterval < 0 || o.CommitInterval > MaxCommitInterval {
		errs = append(errs, fmt.Errorf("commit_interval is %s: use 0 to %s", o.CommitInterval, MaxCommitInterval))
	}
	if o.RepeatWindow < 0 || o.RepeatWindow > MaxRepeatWindow {
		errs = append(errs, fmt.Errorf("the window of repeats is %s: use 0 to %s", o.RepeatWindow, MaxRepeatWindow))
	}
	if o.RepeatWindow > 0 && (o.RepeatBytes < MinRepeatBytes || o.RepeatBytes > MaxRepeatBytes) {
		errs = append(errs, fmt.Errorf("the window of repeats may take %d bytes: use %d to %d", o.RepeatBytes, MinRepeatBytes, MaxRepeatBytes))
	}
	return errors.Join(errs...)
}

// A Policy says what gives way when the buffer is full.
type Policy uint8

// The zero Policy is none, so that forgetting to choose is an error.
const (
	EvictOldest Policy = iota + 1 // the oldest blocks are deleted, and recorded as lost
	Refuse                        // new samples are refused with a FullError
)

// ParsePolicy reads the form that String writes, as config.toml has it.
func ParsePolicy(s string) (Policy, error) {
	for _, p := range []Policy{EvictOldest, Refuse} {
		if s == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("policy %.40q: use %q or %q", s, EvictOldest, Refuse)
}

// String returns the policy's name in config.toml.
func (p Policy) String() string {
	switch p {
	case EvictOldest:
		return "evict_oldest"
	case Refuse:
		return "refuse"
	}
	return fmt.Sprintf("policy %d", uint8(p))
}

// A Buffer is one opening of a buffer's file. Its methods are safe for
// concurrent use. Only Run writes to the file.
//
// The order of shutdown is: end what appends, end what reads, then end Run
// and Close. An append that comes later is told ErrClosed; none is lost
// between two stools, since each is either refused or answered.
type Buffer struct {
	opts     Options
	log      *slog.Logger
	lock     *os.File
	store    *store
	clock    runningClock
	epoch    touchline.Epoch // of this opening
	files    openFiles
	logLimit int    // pages of the log at which it is copied into the database
	known    epochs // its own and those of which the file has blocks

	life    context.Context // ends when the buffer is told to end
	stop    context.CancelFunc
	running atomic.Bool   // Run was called
	ended   chan struct{} // closed when Run has returned
	pulse   pulse
	closed  sync.Once
	closing error // result of the first Close

	room   *semaphore.Weighted // bytes of samples that may wait for a commit
	work   chan struct{}       // something waits for the commit loop; holds one token
	urgent chan struct{}       // …and should not wait for CommitInterval; holds one token

	readers sync.RWMutex // held shared while the file is read, so that Close waits; exclusively while blocks are merged
	frozen  atomic.Int64 // the highest key that was handed out
	unsure  atomic.Int64 // a merge failed, and a power cut may yet bring it about: nothing is handed out from this key on; 0 for none

	mu      sync.Mutex // covers all below
	refused error      // why nothing more is taken: ErrClosed; nil while open
	waiting *batch     // appended, not yet taken by the commit loop
	arrived chan struct{}
	acks    acks
	lost    []*lostRecord // oldest first
	boots   boots
	held    totals // all that is in the file
	kept    totals // …and stored
	oldest  int64  // running ms at which the oldest block that is not stored was committed
	marks   marks  // what is stored; replaced, never changed
	// What is marked, and what the cloud lacks nevertheless: waiting, and in
	// the transaction at hand.
	unstored, unstoring map[int]*touchline.Ranges
	status              status
	damaged             map[touchline.Position]struct{} // blocks found damaged, each counted once

	unreported []damagedBlock // found damaged, not yet recorded as lost
	gone       *GoneError     // the file is: Run ends with it
	damage     *DamageError   // the file itself is damaged: Run ends with it
	aside      []Aside        // as of Open

	w writer // what belongs to the goroutine of Run alone
}

// Open locks the folder, opens or makes the database in it, and draws a fresh
// epoch. It returns a LockedError if another buffer has the folder.
//
// A database that is damaged, another program's, or of a newer schema does not
// make it fail: that file is set aside, never changed or deleted, and a new one
// begun, into which the blocks of a damaged one are taken over with their
// numbers (see Stats.Aside). That reads the whole file, and ends when ctx does;
// the next Open goes on. A file that can't be read, for an I/O error or a
// permission, does make it fail. ctx ends the opening, not the buffer.
func Open(ctx context.Context, opts Options, logger *slog.Logger) (*Buffer, error) {
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	opts.Dir = dir
	if opts.free == nil {
		opts.free = folder.Free
	}
	if opts.Uptime == nil {
		opts.Uptime = func() time.Duration { return 0 }
	}
	if opts.tick == 0 {
		opts.tick = tickInterval
	}
	if opts.vfs == "" {
		opts.vfs = defaultVFS
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	r := recovery{opts: opts, log: logger, path: filepath.Join(dir, databaseName), steps: opts.steps}
	st, state, aside, err := r.openSound(ctx)
	if err != nil {
		return nil, fmt.Errorf("open buffer: %w", errors.Join(err, lock.Close()))
	}
	b := newBuffer(opts, logger)
	b.lock, b.store = lock, st
	b.start(state)
	b.files, err = st.watch()
	if err := errors.Join(err, b.recall(ctx, aside), b.planSpace(ctx)); err != nil {
		return nil, fmt.Errorf("open buffer: %w", errors.Join(err, b.Close()))
	}
	for i := range aside {
		b.aside = append(b.aside, aside[i].stats())
	}
	b.log.Info("buffer opened", "file", st.path, "epoch", b.epoch.String(), "epochs_held", len(b.known.bases)-1,
		"blocks", b.held.blocks, "samples", b.held.samples, "bytes", b.held.bytes, "lost_unconfirmed", len(b.lost))
	return b, nil
}

func newBuffer(opts Options, logger *slog.Logger) *Buffer {
	b := &Buffer{
		opts:    opts,
		log:     logger,
		epoch:   touchline.NewEpoch(),
		ended:   make(chan struct{}),
		pulse:   pulse{began: time.Now()},
		room:    semaphore.NewWeighted(queueBytes),
		work:    make(chan struct{}, 1),
		urgent:  make(chan struct{}, 1),
		waiting: &batch{},
		arrived: make(chan struct{}),
		acks:    newAcks(),
		damaged: make(map[touchline.Position]struct{}),

		unstored: make(map[int]*touchline.Ranges),
		boots:    boots{heard: make(map[wire.ClockOffset]struct{}), again: make(map[wire.ClockOffset]struct{})},
	}
	b.w = writer{spare: &batch{}, encoder: wire.NewEncoder(), decoder: wire.NewDecoder(), nextSeq: 1, freeAt: -freeInterval}
	b.w.repeats = newRepeats(&opts)
	b.life, b.stop = context.WithCancel(context.Background())
	return b
}

// start takes over what the file holds.
func (b *Buffer) start(state contents) {
	b.held, b.lost, b.known = state.held, state.lost, state.epochs
	b.boots.rows = state.clocks
	b.known.add(state.lastKey, b.epoch) // in the file with its first block
	b.clock = newRunningClock(state.runningMS, b.opts.clock)
	b.oldest, b.marks, b.kept = state.oldest, state.marks, state.marks.sum()
	if state.marks != nil { // else there may be some that can't be read
		b.w.savedMarks = &state.marks
	}
	b.w.talliedAt, b.w.mergeFrom = b.clock.now(), b.clock.now()
}

// Close ends Run if it still runs, waits for it and for readers, and frees
// the file and its lock. What was accepted and not yet committed is committed
// by Run before it returns; where Run was never called it is told ErrClosed.
// A second Close returns what the first did.
func (b *Buffer) Close() error {
	b.closed.Do(func() {
		b.stop()
		if b.running.CompareAndSwap(false, true) {
			b.refuse(ErrClosed)
			b.answer(b.take(), ErrClosed)
			close(b.ended)
		}
		<-b.ended
		b.readers.Lock() // waits for reads that are under way; later ones see that life has ended
		defer b.readers.Unlock()
		b.closing = errors.Join(b.putAway(), b.store.close(), b.lock.Close())
	})
	if b.closing != nil {
		return fmt.Errorf("close buffer: %w", b.closing)
	}
	return nil
}
