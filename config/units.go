package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Duration is a time span in a setting: "250ms", "10s", "1h30m" or, as Go's
// own durations can't, "7d".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16) // 65,535 days are 179 years
		if err != nil {
			return fmt.Errorf("%q is no duration: write such as %q, \"24h\" or \"250ms\"", s, "7d")
		}
		*d = Duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	parsed, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration: write a number with a unit, such as \"250ms\", \"10s\", \"24h\" or \"7d\"", s)
	}
	if parsed < 0 {
		return fmt.Errorf("%q is negative: a duration here is zero or more", s)
	}
	*d = Duration(parsed)
	return nil
}

// String returns the form that UnmarshalText reads.
func (d Duration) String() string {
	if day := 24 * time.Hour; d != 0 && time.Duration(d)%day == 0 {
		return fmt.Sprintf("%dd", time.Duration(d)/day)
	}
	return time.Duration(d).String()
}

// Example is what an error shows.
func (Duration) Example() string { return "10s" }

// A Size is a number of bytes in a setting: "64KiB", "10GiB", "500MB" or "0".
type Size int64

// Int returns it for what counts bytes in an int, which on boards of 32 bits ends
// at 2 GiB: more is that, and never less than nothing.
func (s Size) Int() int { return int(min(int64(s), math.MaxInt)) }

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (z *Size) UnmarshalText(text []byte) error {
	s := string(text)
	number, unit := s, int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return fmt.Errorf("%q is no size: write a whole number of bytes with a unit, such as \"64KiB\" or \"10GiB\"", s)
	}
	*z = Size(n * unit)
	return nil
}

// String returns the size in the largest binary unit that divides it.
func (z Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; z != 0 && int64(z)%u.bytes == 0 {
			return fmt.Sprintf("%d%s", int64(z)/u.bytes, u.suffix)
		}
	}
	return fmt.Sprintf("%dB", int64(z))
}

// Example is what an error shows.
func (Size) Example() string { return "64KiB" }

// Short returns the size as a person reads it, to three digits.
func (z Size) Short() string {
	v := float64(z)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		switch {
		case v < 100:
			return fmt.Sprintf("%.3g %s", v, unit)
		case v < 1024:
			return fmt.Sprintf("%.0f %s", v, unit)
		}
		v /= 1024
	}
	return fmt.Sprintf("%.3g TiB", v)
}
