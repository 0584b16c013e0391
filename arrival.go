package touchline

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
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
	ID    Digest // of the name: who sent it, and what he calls it
	Body  Digest // of what it says
	First int    // its first sample in Arrival.Samples
	Count int    // of its samples
	Again bool   // it may be a repeat; else it is a new message, whatever had its name before
	Long  bool   // remembered for a day (an Idempotency-Key), not for the window of repeats
}

// A Digest is the first half of a SHA-256: nobody finds two texts with the
// same by trying.
type Digest [16]byte

// DigestOf returns the digest of parts, which are told apart by their lengths.
func DigestOf[T string | []byte](parts ...T) Digest {
	h := sha256.New()
	var length [8]byte
	for _, part := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	var sum [sha256.Size]byte
	return Digest(h.Sum(sum[:0])[:len(Digest{})])
}

// ErrKeyReused says that a message was not stored because its name (Key.ID,
// Key.Long) was given to another message before.
var ErrKeyReused = errors.New("the key was used for another message")

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
