package payload

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"touchline"
)

// maxMembers bounds the samples of one object. A sensor sends tens; 1,024 of
// 96 bytes are 98 KB.
const maxMembers = 1024

// objectState is the object that is being read.
type objectState struct {
	path    []byte // the metric so far: names of the open members, joined by dots
	time    int64
	hasTime bool
}

func (d *Decoder) decodeObject() *Error {
	s, o := &d.json, &d.object
	o.path, o.time, o.hasTime = o.path[:0], d.src.Now, false
	if d.src.Metric != "" {
		o.path = append(append(o.path, d.src.Metric...), '.')
	}
	if d.src.Sensor == "" {
		return &Error{Record: -1, Offset: -1, What: noSensor}
	}
	prefix := len(o.path)
	ok := s.peek() == '{' || s.unexpected("an object")
	if ok = ok && d.members(1) && s.end(); !ok {
		s.err.Member = quotable(bytes.TrimSuffix(o.path[min(prefix, len(o.path)):], []byte{'.'}))
		return s.err
	}
	if len(d.out) == d.start {
		return &Error{Record: -1, Offset: -1, What: `the object has no value: give at least one member besides "t" that is not null`}
	}
	return nil
}

// members reads the object that is next; depth counts the open ones, it
// included. The path is as before when it returns true, and where it stopped
// when it returns false.
func (d *Decoder) members(depth int) bool {
	s, o := &d.json, &d.object
	s.pos++
	if s.peek() == '}' {
		s.pos++
		return true
	}
	prefix := len(o.path)
	for more := true; more; {
		key, ok := s.member()
		if !ok {
			return false
		}
		o.path = append(o.path[:prefix], key...)
		if depth == 1 && len(key) == 1 && key[0] == 't' {
			ok = d.objectTime()
		} else {
			ok = d.member(depth)
		}
		if !ok {
			return false
		}
		o.path = o.path[:prefix]
		if more, ok = s.next('}'); !ok {
			return false
		}
	}
	return true
}

// member reads the value that path names.
func (d *Decoder) member(depth int) bool {
	s := &d.json
	switch c := s.peek(); c {
	case '"':
		at := s.pos
		text, ok := s.str()
		return ok && d.emit(at, touchline.TextValue(string(text)))
	case 't':
		at := s.pos
		return s.literal("true") && d.emit(at, touchline.BoolValue(true))
	case 'f':
		at := s.pos
		return s.literal("false") && d.emit(at, touchline.BoolValue(false))
	case 'n':
		return s.literal("null")
	case '{', '[':
		if depth++; depth > maxDepth {
			return s.tooDeep()
		}
		d.object.path = append(d.object.path, '.')
		if c == '{' {
			return d.members(depth)
		}
		return d.elements(depth)
	}
	if !s.number() {
		return false
	}
	f, ok := s.float()
	return ok && d.emit(s.num.start, touchline.NumberValue(f))
}

// elements reads the array that is next, as members does objects.
func (d *Decoder) elements(depth int) bool {
	s, o := &d.json, &d.object
	s.pos++
	if s.peek() == ']' {
		s.pos++
		return true
	}
	prefix := len(o.path)
	for i, more := int64(0), true; more; i++ {
		o.path = strconv.AppendInt(o.path[:prefix], i, 10)
		if !d.member(depth) {
			return false
		}
		o.path = o.path[:prefix]
		var ok bool
		if more, ok = s.next(']'); !ok {
			return false
		}
	}
	return true
}

// emit appends the sample of a value that stands at byte offset.
func (d *Decoder) emit(offset int, v touchline.Value) bool {
	metric, err := d.names.metric(d.object.path)
	if err != nil {
		return d.json.failed(offset, err)
	}
	if len(d.out)-d.start >= maxMembers {
		return d.json.fail(offset, fmt.Sprintf("the object has more than %d values: send several", maxMembers))
	}
	n := len(d.out)
	if n == cap(d.out) {
		d.out = slices.Grow(d.out, 1)
	}
	d.out = d.out[:n+1]
	sample := &d.out[n] // in place: a sample has 96 bytes
	sample.Sensor, sample.Metric, sample.Unit = d.src.Sensor, metric, ""
	sample.Time, sample.Stamped, sample.Value = d.object.time, !d.object.hasTime, v
	return true
}

// objectTime reads the value of the member "t". It holds for the members
// before it too.
func (d *Decoder) objectTime() bool {
	s, o := &d.json, &d.object
	const want = "an integer of nanoseconds since 1970 or an RFC 3339 string in double quotes"
	c, at := s.peek(), s.pos
	if c == 'n' {
		return s.literal("null")
	}
	if o.hasTime {
		return s.fail(at, "the time is given twice: keep one")
	}
	switch {
	case c == '"':
		text, ok := s.str()
		if !ok {
			return false
		}
		var err error
		if o.time, err = rfc3339(text); err != nil {
			return s.failed(at, err)
		}
	case c == '-' || c >= '0' && c <= '9':
		if !s.number() {
			return false
		}
		var ok bool
		if o.time, ok = s.int64(); !ok {
			return s.fail(at, "want "+want+", have "+quotable(s.text()))
		}
	default:
		return s.unexpected(want)
	}
	if err := d.checkTime(o.time); err != nil {
		return s.failed(at, err)
	}
	o.hasTime = true
	for i := d.start; i < len(d.out); i++ {
		d.out[i].Time, d.out[i].Stamped = o.time, false
	}
	return true
}

// decodeBare reads one scalar, the value of src.Metric.
func (d *Decoder) decodeBare() *Error {
	s := &d.json
	if d.src.Sensor == "" || d.src.Metric == "" {
		return &Error{Record: -1, Offset: -1, What: "a bare value needs a sensor and a metric: send to sensors/<sensor>/<metric>, or send an object or SenML"}
	}
	d.object.path = append(d.object.path[:0], d.src.Metric...)
	d.object.time, d.object.hasTime = d.src.Now, false
	c := s.peek()
	ok := c != '{' && c != '[' || s.unexpected("a number, true, false or a string in double quotes")
	if ok = ok && d.member(1) && s.end(); !ok {
		return s.err
	}
	if len(d.out) == d.start {
		return &Error{Record: -1, Offset: -1, What: "null is no value: send nothing instead"}
	}
	return nil
}
