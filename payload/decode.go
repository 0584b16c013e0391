package payload

import (
	"errors"
	"fmt"
	"math"
	"time"

	"touchline"
)

// A Decoder reads payloads. It remembers the names it has seen, a bounded
// number of them, so one decoder should serve many payloads; it is not safe
// for concurrent use.
type Decoder struct {
	names names
	json  scanner
	cbor  cborReader

	// what belongs to the payload at hand
	format Format
	src    Source
	out    []touchline.Sample
	start  int // where its samples begin in out

	object objectState
	senml  senmlState
}

// NewDecoder returns a decoder that has seen nothing yet.
func NewDecoder() *Decoder { return &Decoder{names: newNames()} }

// Decode appends the samples of data to dst, at least one; on error, which is
// an *Error, it returns dst as it was (the array behind it may have been
// written to beyond its length). It keeps neither data nor dst. What it
// allocates is bounded by the payload: usually 2 bytes of samples a byte, at
// most 64 (2 samples of 96 bytes from a CBOR record of 3 with a base sum).
//
// Names come from the payload first and then from src:
//
//   - A plain object's members are metrics of src.Sensor, prefixed by
//     src.Metric and a dot where it is set. Nested objects are joined by a
//     dot, arrays by the index after a dot; null says nothing and is skipped.
//     The member "t", outermost only, is the time: integer nanoseconds since
//     the Unix epoch or an RFC 3339 string. Members that repeat are kept, in
//     order. An object comes alone: an array is always SenML, since
//     {"t":1,"v":2} could be either.
//   - SenML names are base name and name together, sensor/metric, split at the
//     first slash. Without a slash the name is the metric, of src.Sensor;
//     without a name the metric is src.Metric.
//   - A bare value (a JSON number, string, true or false) is src.Metric of
//     src.Sensor.
//
// What has no time is stamped src.Now, and what has a time relative to now
// (RFC 8428, section 4.5.3) by it; such samples are Stamped. SenML values that are text, boolean or
// bytes stay so; a SenML sum becomes a sample of its own, of the metric
// <metric>.sum in the unit <unit>.s (RFC 8428, section 4.2: the unit
// multiplied by seconds). SenML's update time is checked and not kept.
func (d *Decoder) Decode(dst []touchline.Sample, format Format, src Source, data []byte) ([]touchline.Sample, error) {
	if format == Auto {
		format = sniff(data)
	}
	d.format, d.src = format, src
	d.out, d.start = dst, len(dst)
	err := d.decode(data)
	out := d.out
	d.out, d.json.data, d.cbor.data, d.src = nil, nil, nil, Source{}
	if err != nil {
		err.Format = format
		return dst, err
	}
	return out, nil
}

// sniff tells the formats apart as documented with Auto.
func sniff(data []byte) Format {
	for _, c := range data {
		switch {
		case c == ' ' || c == '\n' || c == '\t' || c == '\r':
			continue
		case c == '[':
			return SenMLJSON
		case c == '{':
			return Object
		case c >= 0x80 && c <= 0x9f:
			return SenMLCBOR
		}
		break
	}
	return Bare
}

func (d *Decoder) decode(data []byte) *Error {
	if len(data) == 0 {
		return &Error{Record: -1, Offset: -1, What: "the payload is empty: send a value"}
	}
	if d.src.Sensor != "" {
		if err := d.names.checkSensor(d.src.Sensor); err != nil {
			return &Error{Record: -1, Offset: -1, Err: err}
		}
	}
	d.json.data, d.json.pos, d.json.err = data, 0, nil
	switch d.format {
	case SenMLJSON:
		return d.decodeSenMLJSON()
	case SenMLCBOR:
		return d.decodeSenMLCBOR(data)
	case Object:
		return d.decodeObject()
	case Bare:
		return d.decodeBare()
	}
	return &Error{Record: -1, Offset: -1, What: "no such format"}
}

// noSensor is what to say where nothing names the sensor.
const noSensor = `nothing names the sensor: send to sensors/<sensor>, add ?sensor=<sensor>, or use SenML names of the form "sensor/metric"`

// checkTime is touchline.CheckTime, spared where nothing can be wrong.
func (d *Decoder) checkTime(t int64) error {
	if t >= 0 && t <= d.src.Now {
		return nil
	}
	return touchline.CheckTime(t, time.Unix(0, d.src.Now))
}

// rfc3339 reads a time as RFC 3339 writes it, in full; decimals beyond the
// nanosecond are dropped.
func rfc3339(text []byte) (ns int64, err error) {
	var t time.Time
	if err := t.UnmarshalText(text); err != nil {
		return 0, errors.New("the time is not of the form 2006-01-02T15:04:05.999Z (RFC 3339)")
	}
	if s := t.Unix(); s < 0 || s >= math.MaxInt64/int64(time.Second) { // UnixNano would wrap around
		return 0, fmt.Errorf("%w: %s is not between 1970 and 2262", touchline.ErrTime, text)
	}
	return t.UnixNano(), nil
}
