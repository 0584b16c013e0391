package payload

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxQuoted bounds how much of a payload an error quotes, in bytes: an error
// goes to logs and to people, and a sensor may send garbage for hours.
const maxQuoted = 64

// An Error says what is wrong with a payload that was decoded, or a sample
// that was encoded, where, and what to do about it.
type Error struct {
	Format Format
	Record int    // which SenML record, or which sample of those to encode, from 0; -1 where there is none
	Member string // which JSON member (joined by dots) or SenML label; "" where there is none
	Offset int    // which byte of the payload, from 0; -1 where there is none
	What   string // what is wrong and what to do
	Err    error  // the cause, where it is another package's (touchline.ErrTime among them)
}

// Error returns, for example,
//
//	SenML JSON: record 3, "v", byte 57: want a number, have a string
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Format.String())
	sep := ": "
	if e.Record >= 0 {
		fmt.Fprintf(&b, "%srecord %d", sep, e.Record)
		sep = ", "
	}
	if e.Member != "" {
		fmt.Fprintf(&b, "%s%q", sep, e.Member)
		sep = ", "
	}
	if e.Offset >= 0 {
		fmt.Fprintf(&b, "%sbyte %d", sep, e.Offset)
	}
	b.WriteString(": ")
	b.WriteString(e.What)
	if e.Err != nil {
		if e.What != "" {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause, nil where there is none.
func (e *Error) Unwrap() error { return e.Err }

// quotable copies name for an error, cut to maxQuoted bytes between runes.
func quotable(name []byte) string {
	if len(name) <= maxQuoted {
		return string(name)
	}
	cut := maxQuoted
	for cut > maxQuoted-utf8.UTFMax && !utf8.RuneStart(name[cut]) {
		cut--
	}
	return string(name[:cut]) + "…"
}
