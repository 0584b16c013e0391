package payload

import (
	"bytes"
	"encoding/base64"
)

// decodeSenMLJSON reads a pack as RFC 8428, section 5, writes it.
func (d *Decoder) decodeSenMLJSON() *Error {
	s := &d.json
	d.senml.reset()
	if s.peek() != '[' {
		s.unexpected("an array of SenML records")
		return s.err
	}
	s.pos++
	if s.peek() == ']' {
		s.fail(s.pos, "the pack has no record")
		return s.err
	}
	var ok bool
	for i, more := 0, true; more; i++ {
		if err := d.jsonRecord(); err != nil {
			err.Record = i
			return err
		}
		if more, ok = s.next(']'); !ok {
			return s.err
		}
	}
	if !s.end() {
		return s.err
	}
	if len(d.out) == d.start {
		return wrong("", "the pack has base fields only: give a record with a value", nil)
	}
	return nil
}

// jsonRecord reads one record.
func (d *Decoder) jsonRecord() *Error {
	s := &d.json
	if s.peek() != '{' {
		s.unexpected("a SenML record, which is an object")
		return s.err
	}
	offset := s.pos
	s.pos++
	d.senml.begin()
	if s.peek() == '}' {
		s.pos++
	} else {
		var ok bool
		for more := true; more; {
			if !d.jsonField() {
				return s.err
			}
			if more, ok = s.next('}'); !ok {
				return s.err
			}
		}
	}
	if err := d.record(); err != nil {
		err.Offset = offset
		return err
	}
	return nil
}

// jsonField reads one field, label and value.
func (d *Decoder) jsonField() bool {
	s := &d.json
	s.peek()
	offset := s.pos
	key, ok := s.member()
	if !ok {
		return false
	}
	l := jsonLabel(key)
	if l < numLabels {
		s.peek()
		if !d.field(l, (*jsonFields)(s)) {
			s.err.Member = labelNames[l]
			return false
		}
		return true
	}
	if what, ok := unknownField(key); !ok {
		s.fail(offset, what)
		s.err.Member = quotable(key)
		return false
	}
	return s.skip(2) // inside the pack's array and the record
}

// jsonLabel returns numLabels for what RFC 8428 doesn't define.
func jsonLabel(key []byte) label {
	switch string(key) {
	case "bs":
		return baseSum
	case "bv":
		return baseValue
	case "bu":
		return baseUnit
	case "bt":
		return baseTime
	case "bn":
		return baseName
	case "bver":
		return baseVersion
	case "n":
		return fieldName
	case "u":
		return fieldUnit
	case "v":
		return fieldValue
	case "vs":
		return stringValue
	case "vb":
		return boolValue
	case "s":
		return fieldSum
	case "t":
		return fieldTime
	case "ut":
		return updateTime
	case "vd":
		return dataValue
	}
	return numLabels
}

// jsonFields reads field values from a scanner.
type jsonFields scanner

func (r *jsonFields) failed(what string, cause error) bool {
	s := (*scanner)(r)
	s.fail(s.pos, what)
	s.err.Err = cause
	return false
}

// numberNext reads a number into the scanner's num.
func (r *jsonFields) numberNext() (*scanner, bool) {
	s := (*scanner)(r)
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		return s, s.unexpected("a number")
	}
	return s, s.number()
}

func (r *jsonFields) float() (float64, bool) {
	s, ok := r.numberNext()
	if !ok {
		return 0, false
	}
	return s.float()
}

func (r *jsonFields) seconds() (int64, bool) {
	s, ok := r.numberNext()
	if !ok {
		return 0, false
	}
	ns, ok := s.seconds()
	return ns, ok || s.fail(s.num.start, secondsBounds)
}

func (r *jsonFields) version() (uint64, bool) {
	s, ok := r.numberNext()
	if !ok {
		return 0, false
	}
	v, ok := s.int64()
	if !ok || v < 1 {
		return 0, s.fail(s.num.start, "want a positive integer, have "+quotable(s.text()))
	}
	return uint64(v), true
}

func (r *jsonFields) text() ([]byte, bool) {
	s := (*scanner)(r)
	if s.peek() != '"' {
		return nil, s.unexpected("a string")
	}
	return s.str()
}

func (r *jsonFields) boolean() (bool, bool) {
	s := (*scanner)(r)
	switch s.peek() {
	case 't':
		return true, s.literal("true")
	case 'f':
		return false, s.literal("false")
	}
	return false, s.unexpected("true or false")
}

// base64URL refuses what another spelling of the same bytes would be.
var base64URL = base64.RawURLEncoding.Strict()

func (r *jsonFields) octets() ([]byte, bool) {
	s := (*scanner)(r)
	offset := s.pos
	text, ok := r.text()
	if !ok {
		return nil, false
	}
	if padded := bytes.TrimRight(text, "="); len(text)%4 == 0 && len(text)-len(padded) <= 2 {
		text = padded // RFC 8428 has no padding, many libraries write it
	}
	// encoding/base64 skips line ends, which are no part of base64url
	out, err := base64URL.AppendDecode(nil, text)
	if err != nil || bytes.ContainsAny(text, "\r\n") {
		return nil, s.fail(offset, "want base64url without padding (RFC 4648, section 5)")
	}
	return out, true
}
