package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"touchline"
)

// maxAttempts to have a sound file: damage that only SQLite sees makes a
// second one, and a new file that is damaged at once is the disk's fault.
const maxAttempts = 3

// recovery opens the database, whatever became of it.
type recovery struct {
	opts  Options
	log   *slog.Logger
	path  string
	steps asideSteps
}

// openSound returns a store that is sound as far as a start can see, what is
// in it, and what lies beside it. What is damaged, foreign or newer is set
// aside; blocks that are in files set aside and not here yet are taken in.
func (r *recovery) openSound(ctx context.Context) (*store, contents, []asideFile, error) {
	if err := finishMoves(r.path, r.steps); err != nil {
		return nil, contents{}, nil, err
	}
	if err := r.setAsideSuspect(); err != nil {
		return nil, contents{}, nil, err
	}
	for attempt := 1; ; attempt++ {
		found, err := inspect(r.path)
		if err != nil {
			return nil, contents{}, nil, err
		}
		if found.kind != sound {
			if err := r.setAside(found); err != nil {
				return nil, contents{}, nil, err
			}
		}
		st, state, list, err := r.open(ctx)
		if err == nil || st == nil {
			return st, state, list, err
		}
		if attempt == maxAttempts || !isDamageAtOpen(err) {
			return nil, contents{}, nil, errors.Join(err, st.close())
		}
		// Renamed before it is closed: see putAway.
		err = r.setAside(finding{kind: damaged, why: err.Error()})
		if closing := st.close(); err != nil {
			return nil, contents{}, nil, errors.Join(err, closing)
		}
	}
}

// open opens the database and takes in what is pending. A store that comes
// with an error is the caller's to close.
func (r *recovery) open(ctx context.Context) (*store, contents, []asideFile, error) {
	st, err := openStoreOn(ctx, r.opts.vfs, r.path)
	if isFull(err) && r.giveBallast() {
		st, err = openStoreOn(ctx, r.opts.vfs, r.path)
	}
	if err != nil {
		return st, contents{}, nil, err
	}
	state, err := st.load(ctx)
	if err != nil {
		return st, state, nil, err
	}
	list, err := listAside(r.path)
	if err != nil {
		return st, state, nil, err
	}
	took, reserve := false, false
	for i := range list {
		if a := &list[i]; a.pending() {
			partly, err := r.takeIn(ctx, st, a)
			if err != nil {
				return st, state, nil, err
			}
			took, reserve = true, reserve || partly
		}
	}
	if took {
		r.working() // counting all blocks reads a page of each
		if state, err = st.load(ctx); err != nil {
			return st, state, nil, err
		}
	}
	// The numbers that the rest of a file may have are left free below the
	// epoch of this opening.
	if reserve && state.lastKey < maxKey-touchline.MaxSeq {
		state.lastKey += touchline.MaxSeq
	}
	return st, state, list, nil
}

// giveBallast makes room for the tables of a new schema on a disk that is
// full: without them there is no gateway that could make room. It says whether
// there was anything to give.
func (r *recovery) giveBallast() bool {
	l := findBallast(filepath.Join(r.opts.Dir, ballastName))
	if l.there == 0 {
		return false
	}
	err := l.give()
	r.log.Warn("the disk is full: the ballast is given back, so that the database can be brought up to date", "file", l.path, "error", err)
	return err == nil
}

// takeIn salvages the blocks of a file that was set aside, and says whether
// some had to be left for another start.
func (r *recovery) takeIn(ctx context.Context, st *store, a *asideFile) (partly bool, err error) {
	began := time.Now()
	r.log.Info("taking blocks out of a file that was set aside", "file", a.path, "bytes", a.bytes())
	r.working()
	err = st.takeIn(ctx, a, r.working, func() (int64, error) { return r.room(st) })
	if partly = errors.Is(err, errNoRoom); err != nil && !partly && !isFull(err) {
		// The file can't be read now, or not be written into: the gateway
		// must not fail for that, but for the end of ctx, and for what is
		// wrong with the new file.
		if isDamageAtOpen(err) || ctx.Err() != nil {
			return false, err
		}
	}
	if err != nil {
		r.log.Warn("not all blocks could be taken over: the next start goes on", "file", a.path, "error", err,
			"blocks", a.report.Blocks, "samples", a.report.Samples)
		return true, nil
	}
	if a.kind == newer {
		if err := a.markTaken(r.steps); err != nil {
			return false, err
		}
	}
	r.log.Warn("blocks were taken over from a file that was set aside; when you do not need it any more, delete it",
		"file", a.path, "blocks", a.report.Blocks, "samples", a.report.Samples, "samples_lost", a.report.Lost,
		"problem", a.report.Problem, "took", time.Since(began).Round(time.Millisecond))
	return false, nil
}

// working says that the opening goes on.
func (r *recovery) working() {
	if r.opts.Working != nil {
		r.opts.Working()
	}
}

// room is how many bytes may still be taken in: never so many that new samples
// find none.
func (r *recovery) room(st *store) (int64, error) {
	room := int64(1 << 62)
	if r.opts.FreeReserve > 0 {
		free, err := r.opts.free(r.opts.Dir)
		if err != nil {
			return 0, err
		}
		room = free - r.opts.FreeReserve
	}
	pages, err := st.pragma("page_count")
	return min(room, r.opts.MaxBytes-pages*pageBytes+salvageSlack), err
}

// salvageSlack lets a file of MaxBytes be taken over as a whole: a database is
// some 2 % larger than what MaxBytes counts, or 1 MiB.
const salvageSlack = 64 << 20

func (r *recovery) setAside(found finding) error {
	a, err := setAside(r.path, found, r.steps)
	if err != nil {
		return err
	}
	if err := a.writeReport(); err != nil {
		r.log.Warn("report of a file set aside can't be written", "file", a.path, "error", err)
	}
	advice := "its blocks are taken over"
	switch found.kind {
	case foreign:
		advice = "give it back to its owner: touchline does not touch it again"
	case newer:
		advice = newerSchema{found.version, found.needs}.reader() + " takes it back as it starts"
	}
	r.log.Warn("database could not be used and was set aside, a new one is begun", "why", found.why, "file", a.path, "advice", advice)
	return nil
}

// setAsideSuspect sets a file aside in which an earlier run found damage.
func (r *recovery) setAsideSuspect() error {
	dir := filepath.Dir(r.path)
	why, err := os.ReadFile(filepath.Join(dir, suspectName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what was damaged: %w", err)
	}
	// Without a database it was set aside already.
	if _, err := os.Lstat(r.path); err == nil {
		if err := r.setAside(finding{kind: damaged, why: string(trimmed(why))}); err != nil {
			return err
		}
	}
	return removeSuspect(dir)
}

// trimmed bounds what a report repeats.
func trimmed(text []byte) []byte {
	text = text[:min(len(text), 1000)]
	for len(text) > 0 && text[len(text)-1] == '\n' {
		text = text[:len(text)-1]
	}
	return text
}
