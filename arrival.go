package touchline

import (
	"encoding/hex"
	"fmt"
)

// An Arrival is what sensors hand to the gateway in one go: the samples of one
// message, or of several of one connection.
type Arrival struct {
	Samples []Sample
	Clock   *Clock // as it was when the stamped samples were stamped; nil where nothing is known of it
	Keys    []Key  // of messages whose repeats can be told by a name
}

// A Key names a message, so that a repeat of it is known even where its
// samples have no times of their own, and after a restart.
type Key struct {
	ID    [32]byte // SHA-256 of everything that makes the message this one
	First int      // its first sample in Arrival.Samples
	Count int      // of its samples
	Long  bool     // remembered for a day (an Idempotency-Key), not for the window of repeats
}

// A Boot names one run of the machine, from power-on to power-off.
type Boot [16]byte

// String returns 32 lower-case hexadecimal digits.
func (b Boot) String() string { return hex.EncodeToString(b[:]) }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (b Boot) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Boot) UnmarshalText(text []byte) error {
	if len(text) != 2*len(b) {
		return fmt.Errorf("boot %.40q: want %d hexadecimal digits", text, 2*len(b))
	}
	if _, err := hex.Decode(b[:], text); err != nil {
		return fmt.Errorf("boot %.40q: %w", text, err)
	}
	return nil
}

// ClockState says how far a gateway's clock can be trusted. States are in
// order of trust.
type ClockState uint8

// The states, with the numbers that blocks use for them (docs/protocol.md).
const (
	ClockUnset        ClockState = iota // never set since the machine was switched on
	ClockSet                            // plausible, by a battery or a person; nothing vouches for it
	ClockSynchronised                   // by the system's time service, or by the cloud's time
)

// String returns the state as hello, status and docs name it.
func (s ClockState) String() string {
	switch s {
	case ClockUnset:
		return "unset"
	case ClockSet:
		return "set"
	case ClockSynchronised:
		return "synchronised"
	}
	return fmt.Sprintf("clock state %d", uint8(s))
}

// A Clock is one setting of a gateway's clock: within a boot, its time is the
// time since power-on plus Offset, until the clock is set anew, which makes
// another Clock. Two arrivals have the same pointer exactly if their clock was
// the same.
type Clock struct {
	Boot   Boot
	State  ClockState
	Offset int64 // ns: Unix time less time since power-on (CLOCK_BOOTTIME)
}
