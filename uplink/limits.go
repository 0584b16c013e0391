package uplink

import (
	"errors"
	"fmt"
	"time"
)

// Limits says what of the link the uplink may take. The zero Limits takes
// nothing; start from those of Defaults.
type Limits struct {
	// Plain sends all blocks in the order of the buffer, new samples behind
	// the backlog and as fast as the link takes them.
	Plain bool
	// NewestFirst sends the backlog in runs of some thousand samples, the
	// newest run first.
	NewestFirst bool
	// MaxRate bounds frames, in bytes a second; 0 is no bound. Live frames go
	// first, and may be ahead of it by a second's worth.
	MaxRate int
	// BacklogShare is the part of each second in which the backlog is sent,
	// above 0 and at most 1.
	BacklogShare float64
	// BacklogFrom returns the time from which on the backlog may be sent: now
	// or before where it may. Nil is always. It is called often and must not
	// block.
	BacklogFrom func(now time.Time) time.Time
}

func (l *Limits) validate() error {
	var problems []error
	if l.MaxRate < 0 || l.MaxRate > 0 && l.MaxRate < leastRate {
		problems = append(problems, fmt.Errorf("uplink.max_rate is %d bytes/s: want at least %d, or 0 for no limit", l.MaxRate, leastRate))
	}
	if !(l.BacklogShare > 0 && l.BacklogShare <= 1) {
		problems = append(problems, fmt.Errorf("uplink.backlog_share is %v: want above 0, and at most 1", l.BacklogShare))
	}
	return errors.Join(problems...)
}

// leastRate lets the largest block through within AcceptTimeout's 30 s.
const leastRate = 8 << 10
