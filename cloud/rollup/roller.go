package rollup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"touchline/cloud"
)

// Options are the settings of a Roller.
type Options struct {
	// Enabled says whether rows are kept. Where they are not, notes of changes
	// are dropped, and all is computed once they are.
	Enabled bool
	// SecondRows and MinuteRows are how long rows are kept, by the times of
	// their samples; 0 is for ever.
	SecondRows, MinuteRows time.Duration
	Limits                 Limits
}

// minKeep is long enough for what a turn leaves, a gateway's clock that is off
// by a day included.
const minKeep = 48 * time.Hour

func (o *Options) validate() error {
	for name, d := range map[string]time.Duration{"SecondRows": o.SecondRows, "MinuteRows": o.MinuteRows} {
		if d != 0 && d < minKeep {
			return fmt.Errorf("%s is %s: want 0 or at least %s", name, d, minKeep)
		}
	}
	if o.Limits.Notes < 1 || o.Limits.Samples < 1 || o.Limits.Rows < 1 {
		return fmt.Errorf("Limits are %+v: want at least 1 of each", o.Limits)
	}
	return nil
}

// A Roller keeps the rows of one store. Several processes may each have one:
// one of them works, and the others stand by.
type Roller struct {
	opts  Options
	store Store
	log   *slog.Logger
	pace  pace

	mu    sync.Mutex // covers stats
	stats cloud.RollupStats
}

// pace are the waits of a Roller; values, so that tests need not sit them out.
type pace struct {
	look    time.Duration // between turns where nothing is to be done
	standby time.Duration // of one that met another, and stands by
	retry   time.Duration // after an error
	start   time.Duration // between looks at whether rows are to be kept
	trim    time.Duration // between looks at what was kept long enough
}

// defaultPace: with turns at least two seconds apart most blocks of a second
// are there when it is computed.
var defaultPace = pace{look: 2 * time.Second, standby: 30 * time.Second, retry: 10 * time.Second,
	start: time.Minute, trim: time.Hour}

// New returns a Roller, which does nothing before Run.
func New(opts Options, store Store, logger *slog.Logger) (*Roller, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("rollup options: %w", err)
	}
	return &Roller{opts: opts, store: store, log: logger, pace: defaultPace}, nil
}

// Stats returns what was done. It may be called at any time.
func (r *Roller) Stats() cloud.RollupStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Run works until ctx ends, and then returns nil. What fails is logged and
// tried again: nothing of it stops recording.
func (r *Roller) Run(ctx context.Context) error {
	var started, trimmed time.Time
	failing := false
	for {
		wait, err := r.step(ctx, &started, &trimmed)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrOvertaken):
			wait = r.standBy(ctx)
		case err != nil:
			wait = r.pace.retry
			if !failing { // once, until it works again
				r.log.Error("roll up", "error", err)
			}
		}
		failing = err != nil && !errors.Is(err, ErrOvertaken)
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// step does what is due, and says how long to wait then.
func (r *Roller) step(ctx context.Context, started, trimmed *time.Time) (time.Duration, error) {
	now := time.Now()
	if now.Sub(*started) >= r.pace.start || now.Before(*started) {
		if err := r.store.RollupStart(ctx, r.opts.Enabled); err != nil {
			return 0, fmt.Errorf("start: %w", err)
		}
		*started = now
	}
	if !r.opts.Enabled {
		return r.pace.start, nil
	}
	// What can't be dropped holds up no new rows.
	var trimming error
	if now.Sub(*trimmed) >= r.pace.trim || now.Before(*trimmed) {
		if err := r.trim(ctx, now); err != nil {
			trimming = fmt.Errorf("drop what was kept long enough: %w", err)
		} else {
			*trimmed = now
		}
	}
	more, err := r.Turn(ctx)
	if err = errors.Join(trimming, err); err != nil || more {
		return 0, err
	}
	return r.pace.look, nil
}

// trim drops rows in steps of an hour.
func (r *Roller) trim(ctx context.Context, now time.Time) error {
	before := func(keep time.Duration) int64 {
		if keep == 0 {
			return MinSecond
		}
		return now.Add(-keep).Truncate(time.Hour).Unix()
	}
	return r.store.RollupTrim(ctx, before(r.opts.SecondRows), before(r.opts.MinuteRows))
}

// Turn does what one transaction can hold, and says whether there is more.
func (r *Roller) Turn(ctx context.Context) (more bool, err error) {
	work, err := r.store.RollupWork(ctx, r.opts.Limits.Notes)
	if err != nil {
		return false, fmt.Errorf("look for work: %w", err)
	}
	r.noteLag(work)
	if len(work.Notes) == 0 {
		return false, nil
	}
	t := turn{store: r.store, limits: r.opts.Limits}
	if err := t.run(ctx, work); err != nil {
		return false, err
	}
	if err := r.store.RollupCommit(ctx, t.result); err != nil {
		return false, fmt.Errorf("write rows: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Turns++
	r.stats.Samples += uint64(t.read)
	r.stats.Rows += uint64(len(t.result.Seconds) + len(t.result.Minutes))
	return len(t.result.Rest) > 0 || len(work.Notes) == r.opts.Limits.Notes, nil
}

func (r *Roller) noteLag(w Work) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Lag = 0
	if len(w.Notes) > 0 {
		r.stats.Lag = max(0, time.Since(w.Oldest))
	}
}

// standBy returns when the one who had the last turn has had none for a while,
// though there is work.
func (r *Roller) standBy(ctx context.Context) time.Duration {
	last := int64(-1)
	for {
		// Not all at once, where several stand by.
		if !pause(ctx, r.pace.standby/2+rand.N(r.pace.standby)) {
			return 0
		}
		w, err := r.store.RollupWork(ctx, 1)
		if err != nil {
			return r.pace.retry // and Turn says why
		}
		r.noteLag(w)
		if len(w.Notes) > 0 && w.Turn == last {
			return 0
		}
		last = w.Turn
	}
}

// pause waits, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
