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

// Hours are a part of the day, such as 23:00 to 07:00. Equal ends are all of
// it.
type Hours struct{ From, To time.Duration }

// ParseHours reads "HH:MM-HH:MM". An empty text is the whole day.
func ParseHours(s string) (Hours, error) {
	if s == "" {
		return Hours{}, nil
	}
	var text [2]string
	if len(s) != len("23:00-07:00") || s[5] != '-' {
		return Hours{}, fmt.Errorf("hours %.40q: want such as \"23:00-07:00\"", s)
	}
	text[0], text[1] = s[:5], s[6:]
	var ends [2]time.Duration
	for i, t := range text {
		at, err := time.Parse("15:04", t)
		if err != nil {
			return Hours{}, fmt.Errorf("hours %.40q: %q is no time of day: want such as \"23:00-07:00\"", s, t)
		}
		ends[i] = time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute
	}
	return Hours{From: ends[0], To: ends[1]}, nil
}

// Wait returns how long it is from local, a time in the zone that counts, until
// the hours begin; 0 within them.
func (h Hours) Wait(local time.Time) time.Duration {
	if h.From == h.To {
		return 0
	}
	const day = 24 * time.Hour
	clock := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute +
		time.Duration(local.Second())*time.Second + time.Duration(local.Nanosecond())
	into := (clock - h.From + day) % day // since the hours began last
	if into < (h.To-h.From+day)%day {
		return 0
	}
	return day - into
}
