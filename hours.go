package touchline

import (
	"fmt"
	"time"
)

// Hours are a part of the day, such as 23:00 to 07:00, by their ends' distance
// from midnight. Equal ends are all of it.
type Hours struct{ From, To time.Duration }

// ParseHours reads "HH:MM-HH:MM". An empty text is the whole day.
func ParseHours(s string) (Hours, error) {
	if s == "" {
		return Hours{}, nil
	}
	if len(s) != len("23:00-07:00") || s[5] != '-' {
		return Hours{}, fmt.Errorf("%.40q are no hours: want such as \"23:00-07:00\"", s)
	}
	var ends [2]time.Duration
	for i, text := range []string{s[:5], s[6:]} {
		at, err := time.Parse("15:04", text)
		if err != nil {
			return Hours{}, fmt.Errorf("%.40q are no hours: %q is no time of day; want such as \"23:00-07:00\"", s, text)
		}
		ends[i] = time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute
	}
	return Hours{From: ends[0], To: ends[1]}, nil
}

// Wait returns how long it is from local, a time in the zone that counts, until
// the hours begin; 0 within them.
func (h Hours) Wait(local time.Time) time.Duration {
	const day = 24 * time.Hour
	if h.From == h.To {
		return 0
	}
	clock := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute +
		time.Duration(local.Second())*time.Second + time.Duration(local.Nanosecond())
	into := (clock - h.From + day) % day // since the hours began last
	if into < (h.To-h.From+day)%day {
		return 0
	}
	return day - into
}
