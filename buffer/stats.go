package buffer

import (
	"slices"
	"time"

	"touchline"
)

// A State says whether the buffer takes samples.
type State string

// The states of a buffer.
const (
	StateOK    State = "ok"
	StateFull  State = "full"  // a limit is reached and the policy is to refuse, or the disk is full
	StateError State = "error" // the last commit failed; it is tried again
)

// Stats is a copy of what the buffer counted. Counters begin at zero with
// each opening.
type Stats struct {
	Epoch     touchline.Epoch
	State     State
	LastError string // of the last commit that failed, "" if none did

	// What waits for the cloud; bytes as MaxBytes counts them.
	Blocks, Samples, Bytes int64
	OldestAge              time.Duration // running time since the oldest of them was committed; 0 without blocks
	// What the cloud stored, and is kept while there is room.
	KeptBlocks, KeptSamples, KeptBytes int64
	Waiting                            int // samples that wait for a commit
	LostRecords                        int // not yet confirmed
	Clocks                             int // that correct what was stamped, not yet confirmed

	Appended uint64            // samples committed
	Acked    uint64            // samples that the cloud called stored
	Lacked   uint64            // …and that it did not have any more later, by their numbers
	Evicted  map[string]uint64 // samples deleted, by cause: max_bytes, max_age, free_reserve
	Merged   uint64            // small blocks that became large ones before anybody saw them
	Damaged  uint64            // blocks found damaged when they were read

	Ballast      int64 // bytes kept to get out of a full disk
	BallastGiven bool  // …which are given back, since the disk was full

	DamagedSamples uint64  // samples recorded as lost because their block was damaged
	Aside          []Aside // files that were set aside, oldest first, as of Open

	Repeats         uint64 // samples that were not stored again: the window of repeats has them
	RepeatsByKey    uint64 // …their message's key is known
	ForgottenEarly  uint64 // samples that left the window of repeats before their time, for want of room
	KeysForgotten   uint64 // keys of messages that were forgotten before their time, for want of room
	RepeatWindowLen int    // samples in the window

	Commits      uint64        // transactions that inserted samples
	CommitErrors uint64        // commits that failed
	LastCommit   time.Duration // how long the last one took, encoding and sync included
}

// Aside says what became of one database that was set aside. Nothing deletes
// it but a person.
type Aside struct {
	Path    string
	Kind    string // damaged, foreign, newer, or taken: was newer, and its blocks were taken in
	Why     string // "" where its report is gone
	Needs   string // the version of touchline that takes a newer one back, "" where that is not known
	When    time.Time
	Bytes   int64  // on the disk, with its log
	State   string // salvaged, partly salvaged (the next opening goes on), or untouched
	Blocks  int64  // that were taken over
	Samples int64
	Lost    int64  // samples that are known to be lost with it
	Problem string // the first thing that was wrong while it was read
}

func (a *asideFile) stats() Aside {
	s := Aside{
		Path: a.path, Kind: string(a.kind), Why: a.report.Why, Needs: a.report.Needs, When: a.at, Bytes: a.bytes(), State: a.report.State,
		Blocks: a.report.Blocks, Samples: a.report.Samples, Lost: a.report.Lost, Problem: a.report.Problem,
	}
	if s.State == "" {
		s.State = "untouched"
	}
	return s
}

// status is what the buffer counts; Buffer.mu covers it.
type status struct {
	limit     string // why appends are refused by policy; "" if they are not
	failing   bool   // the last commit failed
	diskFull  bool   // …because the disk is full
	retryAt   time.Time
	lastError string

	appended, acked, damaged uint64
	damagedSamples           uint64
	evicted                  [causes]uint64
	commits, commitErrors    uint64
	repeats                  repeatStats
	lastCommit               time.Duration
	lacked, merged           uint64
	ballast                  int64
	ballastGiven             bool
}

func (s *status) state() State {
	switch {
	case s.limit != "", s.failing && s.diskFull:
		return StateFull
	case s.failing:
		return StateError
	}
	return StateOK
}

// Stats returns the counters as of now. It never waits for the disk, and may
// be called after Close.
func (b *Buffer) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	backlog := b.backlog()
	s := Stats{
		Epoch:          b.epoch,
		State:          b.status.state(),
		LastError:      b.status.lastError,
		Blocks:         backlog.blocks,
		Samples:        backlog.samples,
		Bytes:          backlog.bytes,
		KeptBlocks:     b.kept.blocks,
		KeptSamples:    b.kept.samples,
		KeptBytes:      b.kept.bytes,
		Waiting:        len(b.waiting.samples),
		LostRecords:    len(b.lost),
		Appended:       b.status.appended,
		Acked:          b.status.acked,
		Lacked:         b.status.lacked,
		Merged:         b.status.merged,
		Evicted:        make(map[string]uint64, causes),
		Damaged:        b.status.damaged,
		DamagedSamples: b.status.damagedSamples,
		Aside:          slices.Clone(b.aside),
		Commits:        b.status.commits,
		CommitErrors:   b.status.commitErrors,
		LastCommit:     b.status.lastCommit,

		Repeats:         b.status.repeats.samples,
		RepeatsByKey:    b.status.repeats.byKey,
		ForgottenEarly:  b.status.repeats.early,
		KeysForgotten:   b.status.repeats.keysEarly,
		RepeatWindowLen: b.status.repeats.length,
		Ballast:         b.status.ballast,
		BallastGiven:    b.status.ballastGiven,
	}
	for _, r := range b.boots.rows {
		if !r.confirmed {
			s.Clocks++
		}
	}
	if backlog.blocks > 0 {
		s.OldestAge = time.Duration(b.clock.now()-b.oldest) * time.Millisecond
	}
	for c, n := range b.status.evicted {
		s.Evicted[cause(c).String()] = n
	}
	return s
}
