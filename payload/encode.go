package payload

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"touchline"
)

// AppendSenMLJSON appends samples to dst as one SenML pack in JSON (RFC 8428,
// section 5), which Decode reads back as the same samples, bit for bit: base
// names where the sensor changes, absolute times with the decimals they need,
// numbers in their shortest exact form, bytes as base64url. The samples of no
// record depend on another's but for the base name, and the first one always
// has that, so the records of several packs make one.
//
// On error, which is an *Error whose Record is the index of the sample to
// blame, it returns dst unchanged: a number that is not finite (only CBOR has
// those), a time before July 1978, which SenML would take to be relative to
// now, a name that CheckSensor, CheckMetric or CheckUnit refuse, or text that
// is not valid UTF-8.
func AppendSenMLJSON(dst []byte, samples []touchline.Sample) ([]byte, error) {
	out := append(dst, '[')
	var c encodeChecker
	for i := range samples {
		s := &samples[i]
		if err := c.check(s); err != nil {
			return dst, encodeError(SenMLJSON, i, err)
		}
		if f := s.Value.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			err := wrong("v", "JSON has no form for "+string(AppendFloat(nil, f))+": export as SenML CBOR", nil)
			return dst, encodeError(SenMLJSON, i, err)
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, '{')
		if c.newSensor {
			out = append(out, `"bn":`...)
			out = appendQuoted(out, s.Sensor, "/")
			out = append(out, ',')
		}
		out = append(out, `"n":`...)
		out = appendQuoted(out, s.Metric, "")
		if s.Unit != "" {
			out = append(out, `,"u":`...)
			out = appendQuoted(out, s.Unit, "")
		}
		out = append(out, `,"t":`...)
		out = appendSeconds(out, s.Time)
		out = appendJSONValue(out, s.Value)
		out = append(out, '}')
	}
	return append(out, ']'), nil
}

func appendJSONValue(dst []byte, v touchline.Value) []byte {
	switch v.Kind() {
	case touchline.Number:
		return AppendFloat(append(dst, `,"v":`...), v.Float())
	case touchline.Bool:
		return strconv.AppendBool(append(dst, `,"vb":`...), v.Bool())
	case touchline.Text:
		return appendQuoted(append(dst, `,"vs":`...), v.Text(), "")
	case touchline.Bytes:
		dst = append(dst, `,"vd":"`...)
		dst = base64.RawURLEncoding.AppendEncode(dst, []byte(v.Text()))
		return append(dst, '"')
	}
	panic("BUG: value of " + v.Kind().String())
}

// appendQuoted appends s and suffix as one JSON string; both are valid UTF-8.
func appendQuoted(dst []byte, s, suffix string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			const hex = "0123456789abcdef"
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	dst = append(dst, s[from:]...)
	dst = append(dst, suffix...)
	return append(dst, '"')
}

// AppendSenMLCBOR appends samples to dst as one SenML pack in CBOR (RFC 8428,
// section 6), which Decode reads back as the same samples, bit for bit, NaN
// payloads and infinities included: base names where the sensor changes,
// times as integers or decimal fractions, numbers in the shortest exact form
// that CBOR has. Errors are those of AppendSenMLJSON, less numbers.
func AppendSenMLCBOR(dst []byte, samples []touchline.Sample) ([]byte, error) {
	out := appendHead(dst, cborArray, uint64(len(samples)))
	var c encodeChecker
	for i := range samples {
		s := &samples[i]
		if err := c.check(s); err != nil {
			return dst, encodeError(SenMLCBOR, i, err)
		}
		fields := uint64(3) // name, time, value
		if c.newSensor {
			fields++
		}
		if s.Unit != "" {
			fields++
		}
		out = appendHead(out, cborMap, fields)
		if c.newSensor {
			out = appendLabel(out, baseName)
			out = appendHead(out, cborText, uint64(len(s.Sensor)+1))
			out = append(append(out, s.Sensor...), '/')
		}
		out = appendText(appendLabel(out, fieldName), cborText, s.Metric)
		if s.Unit != "" {
			out = appendText(appendLabel(out, fieldUnit), cborText, s.Unit)
		}
		out = appendCBORSeconds(appendLabel(out, fieldTime), s.Time)
		out = appendCBORValue(out, s.Value)
	}
	return out, nil
}

func appendCBORValue(dst []byte, v touchline.Value) []byte {
	switch v.Kind() {
	case touchline.Number:
		return appendCBORFloat(appendLabel(dst, fieldValue), v.Float())
	case touchline.Bool:
		b := byte(0xf4)
		if v.Bool() {
			b = 0xf5
		}
		return append(appendLabel(dst, boolValue), b)
	case touchline.Text:
		return appendText(appendLabel(dst, stringValue), cborText, v.Text())
	case touchline.Bytes:
		return appendText(appendLabel(dst, dataValue), cborBytes, v.Text())
	}
	panic("BUG: value of " + v.Kind().String())
}

// appendHead appends an item's first bytes in their shortest form.
func appendHead(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, major|27), n)
}

func appendCBORInt(dst []byte, n int64) []byte {
	if n < 0 {
		return appendHead(dst, cborNegInt, uint64(-1-n))
	}
	return appendHead(dst, cborUint, uint64(n))
}

func appendLabel(dst []byte, l label) []byte {
	return appendCBORInt(dst, int64(l)-cborLabelShift)
}

func appendText(dst []byte, major byte, s string) []byte {
	return append(appendHead(dst, major, uint64(len(s))), s...)
}

// appendCBORSeconds appends ns as whole seconds or as a decimal fraction.
func appendCBORSeconds(dst []byte, ns int64) []byte {
	exponent := int64(-9)
	for exponent < 0 && ns%10 == 0 {
		ns /= 10
		exponent++
	}
	if exponent < 0 {
		dst = append(dst, cborTag<<5|4, cborArray<<5|2)
		dst = appendCBORInt(dst, exponent)
	}
	return appendCBORInt(dst, ns)
}

// appendCBORFloat appends f as an integer below 2^32 where it is one, and
// else as the shortest float that holds its bits. NaN goes in full, since
// converting one to fewer bits may change it.
func appendCBORFloat(dst []byte, f float64) []byte {
	bits := math.Float64bits(f)
	if math.Abs(f) < 1<<32 && f == math.Trunc(f) && bits != 1<<63 {
		return appendCBORInt(dst, int64(f))
	}
	if f == float64(float32(f)) {
		return binary.BigEndian.AppendUint32(append(dst, cborSimple<<5|26), math.Float32bits(float32(f)))
	}
	return binary.BigEndian.AppendUint64(append(dst, cborSimple<<5|27), bits)
}

// An encodeChecker says which samples SenML can carry, and checks a sensor
// once for each run of its samples.
type encodeChecker struct {
	sensor    string
	newSensor bool // the last sample checked is another sensor's than the one before
}

func (c *encodeChecker) check(s *touchline.Sample) *Error {
	if c.newSensor = c.sensor == "" || s.Sensor != c.sensor; c.newSensor {
		if err := touchline.CheckSensor(s.Sensor); err != nil {
			return wrong("", "", err)
		}
		c.sensor = s.Sensor
	}
	if err := touchline.CheckMetric(s.Metric); err != nil {
		return wrong("n", "", err)
	}
	if err := touchline.CheckUnit(s.Unit); err != nil {
		return wrong("u", "", err)
	}
	if s.Time < absoluteTime {
		return wrong("t", fmt.Sprintf("%d ns is before 1978-07-04T21:24:16Z (2^28 s), which SenML takes to be relative to now: export in another format", s.Time), nil)
	}
	if s.Value.Kind() == touchline.Text && !utf8.ValidString(s.Value.Text()) {
		return wrong("vs", "the text is not valid UTF-8: record it as bytes", nil)
	}
	return nil
}

func encodeError(format Format, record int, err *Error) error {
	err.Format, err.Record = format, record
	return err
}
