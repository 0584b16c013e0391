package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"touchline"
	"touchline/wire"
)

const (
	// tickInterval is how often ages, free space and acknowledgements are
	// looked after where no commit does so: an acknowledgement is durable a
	// second after it came, which costs nothing but a block sent again.
	tickInterval = time.Second

	// After a failed commit the next one waits 50 ms, then twice as long
	// each time, up to 5 s: a disk that comes back is found soon, and one
	// that does not is not worn out by trying.
	retryFirst = 50 * time.Millisecond
	retryMost  = 5 * time.Second
	// retryFull is what a refused sensor is told while a limit is reached.
	retryFull = time.Second

	// tallyInterval bounds what Open has to count, and by how much ages fall
	// back when the power is cut while nothing is appended.
	tallyInterval = time.Minute
)

// writer is what the goroutine of Run alone may touch.
type writer struct {
	spare   *batch // the batch that is not waiting
	encoder *wire.Encoder
	decoder *wire.Decoder
	arena   []byte // data of blocks

	blocks   []encoded // of the batch at hand
	incoming int64     // what they add to totals.bytes
	repeats  repeats

	epochSaved bool   // the epoch's row is in the file
	nextSeq    uint64 // number of the next sample: dense, whatever fails
	talliedAt  int64  // running ms
	savedMarks *marks // what the file has; nil is not known
	unsettled  *txn   // its COMMIT failed, and whether it is in the file is not known

	evicts  []func(error) // who waits for the limits to be applied
	more    bool          // a transaction stopped at its budget: there is more to delete
	started time.Time     // of the last commit
	retryAt time.Time
	failed  int // commits in a row

	mergedTo  int64 // key up to which blocks are as large as they get
	mergeFrom int64 // running ms at which that was so

	logPages int           // of the write-ahead log since it was last copied, estimated
	free     int64         // bytes on the file system, as of freeAt
	freeAt   time.Duration // monotonic
	written  int64         // bytes that the log took since, at most
	ballast  ballast
	pressed  bool   // the disk was full: evict before the next commit
	chore    string // the last trouble with upkeep that was logged
}

// encoded is a block on its way into the file.
type encoded struct {
	wire.Block
	minTime, maxTime int64
	doubted          *touchline.Clock // see doubtful
}

// Run commits what is appended, applies the limits, and returns nil when ctx
// ends or Close is called, after a last commit of what was accepted. It may be
// called once. A failing disk does not end it: it answers with errors, says so
// in Stats, and tries again. A damaged file does, with a DamageError.
func (b *Buffer) Run(ctx context.Context) error {
	if !b.running.CompareAndSwap(false, true) {
		return errors.New("run buffer: it was run or closed before")
	}
	defer close(b.ended)
	defer context.AfterFunc(ctx, b.stop)()
	tick := time.NewTicker(b.opts.tick)
	defer tick.Stop()
	for {
		upkeep := false
		b.pulse.turn()
		select {
		case <-b.life.Done():
			if err := b.damageFound(); err != nil {
				b.abandon(err)
				return fmt.Errorf("run buffer: %w", err)
			}
			b.finish()
			if err := b.damageFound(); err != nil {
				return fmt.Errorf("run buffer: %w", err)
			}
			return nil
		case <-b.work:
		case <-tick.C:
			upkeep = true
		}
		if b.pace() {
			b.round(upkeep)
			b.afterRound(upkeep)
		}
	}
}

// finish makes the last commit. Nothing depends on it but politeness: what is
// not committed was not acknowledged.
func (b *Buffer) finish() {
	b.refuse(ErrClosed)
	b.round(true)
	b.answerEvicts(ErrClosed)
	b.log.Info("buffer ended", "epoch", b.epoch.String(), "blocks", b.held.blocks, "samples", b.held.samples)
}

// pace waits until the next commit may start, and says whether it should:
// not when the buffer was told to end meanwhile.
func (b *Buffer) pace() bool {
	next := b.w.started.Add(b.opts.CommitInterval)
	if b.w.more {
		next = b.w.started // deleting writes as much whenever it is done
	}
	hurry := b.urgent
	if b.w.retryAt.After(next) {
		next, hurry = b.w.retryAt, nil
	}
	wait := time.Until(next)
	if wait <= 0 {
		return b.life.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-b.life.Done():
		return false
	case <-hurry:
	case <-timer.C:
	}
	return true
}

// round takes all that waits, commits it, and answers.
func (b *Buffer) round(upkeep bool) {
	select {
	case <-b.urgent: // it speaks of what is taken now
	default:
	}
	b.w.started = time.Now()
	taken := b.take()
	b.w.evicts = append(b.w.evicts, taken.evicts...)
	committing(taken)
	back := b.pulse.atDisk()
	wrote, err := b.write(taken, upkeep || b.w.more || len(b.w.evicts) > 0)
	back()
	if wrote || err != nil {
		b.note(err)
	}
	b.noticeDamage(err)
	b.noticeGone(err)
	b.checkLimits() // before the answers, so that who was told sees the limit
	b.countRepeats(err)
	if err != nil {
		b.answer(taken, &CommitError{Err: err, After: b.retryAfter()})
		b.answerEvicts(err)
		signal(b.work) // what failed may be tried again even if nothing is appended
		return
	}
	b.answer(taken, nil)
	if b.w.more {
		signal(b.work)
	} else {
		b.answerEvicts(nil)
	}
}

func (b *Buffer) answerEvicts(err error) {
	for _, done := range b.w.evicts {
		done(err)
	}
	b.w.evicts = nil
}

// write commits a batch, and says whether the file was changed. Whatever it
// returns, numbers stay dense: those of a batch that did not get into the file
// are given to the next.
func (b *Buffer) write(taken *batch, upkeep bool) (wrote bool, err error) {
	b.w.blocks = b.w.blocks[:0]
	if err := b.settle(); err != nil {
		return false, err
	}
	if err := b.encode(taken); err != nil {
		b.w.repeats.takeBack()
		return false, err
	}
	b.makeRoom()
	chores := b.chores(upkeep)
	if len(b.w.blocks) == 0 && !chores && !b.w.repeats.keys.Pending() {
		return false, nil
	}
	t, err := b.begin()
	if err != nil {
		b.w.repeats.takeBack()
		return false, err
	}
	if err := t.fill(chores); err != nil {
		t.rollback()
		return false, err
	}
	return t.changed(), t.commit()
}

// encode makes blocks of a batch's samples, but for those that are repeats.
// Samples that the encoder refuses are answered on their own, so that they
// fail nobody else's.
func (b *Buffer) encode(taken *batch) error {
	if b.encodeAll(b.fresh(taken)) == nil {
		return nil
	}
	b.w.repeats.takeBack() // what is refused must not make others repeats of it
	var samples, entries, room = 0, 0, int64(0)
	rest := taken.samples
	for _, e := range taken.entries {
		mine := rest[:e.count]
		rest = rest[e.count:]
		if err := b.encodeAll(&batch{samples: mine, entries: []entry{e}}); err != nil {
			room += e.room
			if e.done != nil {
				e.done(fmt.Errorf("%w: %w", ErrSample, err))
			}
			continue
		}
		samples += copy(taken.samples[samples:], mine)
		taken.entries[entries] = e
		entries++
	}
	clear(taken.samples[samples:])
	clear(taken.entries[entries:])
	taken.samples, taken.entries = taken.samples[:samples], taken.entries[:entries]
	b.room.Release(room)
	return b.encodeAll(b.fresh(taken))
}

// encodeAll puts the blocks of a batch into b.w.blocks, numbered from
// b.w.nextSeq. What arrived under another clock gets a block of its own.
func (b *Buffer) encodeAll(taken *batch) error {
	b.w.blocks, b.w.arena = b.w.blocks[:0], b.w.arena[:0]
	rest := taken.samples
	for entries := taken.entries; len(entries) > 0; {
		clock, count := entries[0].clock, 0
		for len(entries) > 0 && entries[0].clock == clock {
			count += entries[0].count
			entries = entries[1:]
		}
		seq := b.w.nextSeq
		if n := len(b.w.blocks); n > 0 {
			seq = b.w.blocks[n-1].Last() + 1
		}
		var attributes wire.Attributes
		if clock != nil {
			attributes.Clock = &wire.BlockClock{Clock: *clock, Uptime: b.opts.Uptime()}
		}
		if err := b.encodeRun(seq, rest[:count], attributes); err != nil {
			return err
		}
		rest = rest[count:]
	}
	return nil
}

// encodeRun adds the blocks of samples of which the same is said to
// b.w.blocks, numbered from seq.
func (b *Buffer) encodeRun(seq uint64, rest []touchline.Sample, attributes wire.Attributes) error {
	w := &b.w
	for len(rest) > 0 {
		if cap(w.arena)-len(w.arena) < wire.MaxBlockBytes {
			w.arena = make([]byte, 0, max(2*cap(w.arena), 2*wire.MaxBlockBytes)) // earlier blocks keep the old one
		}
		out, err := w.encoder.EncodeWith(w.arena[len(w.arena):], rest, attributes)
		if err != nil {
			return fmt.Errorf("encode block: %w", err)
		}
		w.arena = w.arena[:min(len(w.arena)+len(out.Data), cap(w.arena))]
		block := encoded{
			Block:   wire.Block{Epoch: b.epoch, First: seq, Count: uint32(out.Count), Data: out.Data},
			minTime: out.MinTime, maxTime: out.MaxTime, doubted: doubtful(rest[:out.Count], attributes.Clock),
		}
		block.CRC = block.Sum()
		w.blocks = append(w.blocks, block)
		seq += uint64(out.Count)
		rest = rest[out.Count:]
	}
	return nil
}
