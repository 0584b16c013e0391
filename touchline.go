// Package touchline is the vocabulary of the gateway and its cloud: the
// sample and its value, the epoch, ranges of sample numbers, and the names a
// sensor may have. It holds no state and starts nothing; every other package
// speaks in its terms. The gateway's settings (config.toml) are here too,
// because they are what an operator and the code must agree on.
package touchline

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"math"
)

// A Sample is one value of one metric of one sensor at one time. Samples are
// comparable: == compares names, time and the exact bits of the value.
type Sample struct {
	Sensor string // who measured; see CheckSensor
	Metric string // what was measured; see CheckMetric
	Unit   string // SenML unit (RFC 8428, section 12.1) where known, else ""
	Time   int64  // nanoseconds since the Unix epoch, UTC
	Value  Value

	// Stamped says that Time is the gateway's, because the sensor gave none:
	// what is corrected once the gateway's clock is known to have been wrong.
	Stamped bool
}

// Kind says which of its four forms a Value has.
type Kind uint8

// The kinds, with the numbers that blocks use for them (docs/protocol.md).
const (
	Number Kind = iota // float64
	Text
	Bool
	Bytes
)

// String returns the kind's name as docs and errors use it.
func (k Kind) String() string {
	switch k {
	case Number:
		return "number"
	case Text:
		return "text"
	case Bool:
		return "boolean"
	case Bytes:
		return "bytes"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Value is a number, a text, a boolean or bytes. The zero Value is the
// number 0. Values are immutable and comparable: two numbers are equal when
// their bits are, so NaN payloads and the sign of zero count.
type Value struct {
	bits uint64 // number: math.Float64bits; boolean: 0 or 1
	text string // text and bytes
	kind Kind
}

// NumberValue returns f as a value, bit for bit.
func NumberValue(f float64) Value { return Value{kind: Number, bits: math.Float64bits(f)} }

// TextValue returns s as a value.
func TextValue(s string) Value { return Value{kind: Text, text: s} }

// BytesValue returns the bytes of s as a value. It takes a string so that the
// value can't change under its owner.
func BytesValue(s string) Value { return Value{kind: Bytes, text: s} }

// BoolValue returns b as a value.
func BoolValue(b bool) Value {
	if b {
		return Value{kind: Bool, bits: 1}
	}
	return Value{kind: Bool}
}

// Kind returns which form the value has.
func (v Value) Kind() Kind { return v.kind }

// Float returns the number; 0 for other kinds.
func (v Value) Float() float64 {
	if v.kind != Number {
		return 0
	}
	return math.Float64frombits(v.bits)
}

// Bool returns the boolean; false for other kinds.
func (v Value) Bool() bool { return v.kind == Bool && v.bits != 0 }

// Text returns the text, or the bytes as a string; "" for other kinds.
func (v Value) Text() string { return v.text }

// MetricRaw is the metric under which a payload that could not be understood
// is kept whole, as a bytes value.
const MetricRaw = "_raw"

// An Epoch names one opening of a buffer: 128 random bits. Sample numbers are
// dense within an epoch and mean nothing outside it.
type Epoch [16]byte

// NewEpoch draws an epoch.
func NewEpoch() Epoch {
	var e Epoch
	if _, err := rand.Read(e[:]); err != nil {
		panic("BUG: crypto/rand failed: " + err.Error()) // documented never to happen
	}
	return e
}

// ParseEpoch reads the form that String writes.
func ParseEpoch(s string) (Epoch, error) {
	var e Epoch
	if len(s) != 2*len(e) {
		return e, fmt.Errorf("epoch %.40q: want %d hexadecimal digits", s, 2*len(e))
	}
	if _, err := hex.Decode(e[:], []byte(s)); err != nil {
		return e, fmt.Errorf("epoch %q: %w", s, err)
	}
	return e, nil
}

// String returns 32 lower-case hexadecimal digits.
func (e Epoch) String() string { return hex.EncodeToString(e[:]) }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (e Epoch) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *Epoch) UnmarshalText(text []byte) error {
	parsed, err := ParseEpoch(string(text))
	if err != nil {
		return err
	}
	*e = parsed
	return nil
}

// A Position is a place in a buffer: behind sample Seq of Epoch. The zero
// Position is before everything.
type Position struct {
	Epoch Epoch
	Seq   uint64
}
