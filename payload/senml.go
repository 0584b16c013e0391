package payload

import (
	"fmt"
	"math"
	"math/bits"

	"touchline"
)

// label numbers the fields of RFC 8428, sections 4.1 and 4.2: the CBOR label
// of its table 4 plus 6, so that none is negative.
type label uint8

const (
	baseSum label = iota
	baseValue
	baseUnit
	baseTime
	baseName
	baseVersion
	fieldName
	fieldUnit
	fieldValue
	stringValue
	boolValue
	fieldSum
	fieldTime
	updateTime
	dataValue
	numLabels
)

// labelNames are the JSON labels, which errors use for CBOR too.
var labelNames = [numLabels]string{
	"bs", "bv", "bu", "bt", "bn", "bver", "n", "u", "v", "vs", "vb", "s", "t", "ut", "vd",
}

// A labelSet has a bit for each label.
type labelSet uint16

func set(labels ...label) (s labelSet) {
	for _, l := range labels {
		s |= 1 << l
	}
	return s
}

func (s labelSet) has(l label) bool { return s&(1<<l) != 0 }

var (
	baseLabels  = set(baseSum, baseValue, baseUnit, baseTime, baseName, baseVersion)
	valueLabels = set(fieldValue, stringValue, boolValue, dataValue)
)

// maxVersion is the SenML version of RFC 8428.
const maxVersion = 10

// A fieldReader reads a field's value, in JSON or in CBOR. Where it returns
// false it has said why. Bytes that it returns are valid until the next call.
type fieldReader interface {
	float() (float64, bool)
	seconds() (int64, bool) // as nanoseconds
	version() (uint64, bool)
	text() ([]byte, bool)
	boolean() (bool, bool)
	octets() ([]byte, bool)
	failed(what string, cause error) bool
}

// senmlState is the pack and the record that are being read.
type senmlState struct {
	// base fields, which hold until the pack ends or another replaces them
	base      labelSet
	baseName  []byte
	baseUnit  string
	baseTime  int64
	baseValue float64
	baseSum   float64

	// the record's own
	labels labelSet
	name   []byte
	unit   string
	time   int64
	number float64
	value  touchline.Value // where it is no number
	sum    float64

	resolved []byte // base name and name
}

// reset begins a pack.
func (p *senmlState) reset() {
	*p = senmlState{baseName: p.baseName[:0], name: p.name[:0], resolved: p.resolved[:0]}
}

// begin begins a record.
func (p *senmlState) begin() {
	p.labels, p.name, p.unit, p.time = 0, p.name[:0], "", 0
	p.number, p.value, p.sum = 0, touchline.Value{}, 0
}

// field reads the value of the field l from r.
func (d *Decoder) field(l label, r fieldReader) (ok bool) {
	p := &d.senml
	if p.labels.has(l) {
		return r.failed("the label is there twice in one record: keep one", nil)
	}
	p.labels |= 1 << l
	if l <= baseVersion {
		p.base |= 1 << l
	}
	var text []byte
	switch l {
	case baseName:
		text, ok = r.text()
		p.baseName = append(p.baseName[:0], text...)
	case fieldName:
		text, ok = r.text()
		p.name = append(p.name[:0], text...)
	case baseUnit:
		p.baseUnit, ok = d.unit(r)
	case fieldUnit:
		p.unit, ok = d.unit(r)
	case baseTime:
		p.baseTime, ok = r.seconds()
	case fieldTime:
		p.time, ok = r.seconds()
	case updateTime:
		_, ok = r.seconds() // says when to expect more, nothing about this value
	case baseValue:
		p.baseValue, ok = r.float()
	case fieldValue:
		p.number, ok = r.float()
	case baseSum:
		p.baseSum, ok = r.float()
	case fieldSum:
		p.sum, ok = r.float()
	case stringValue:
		text, ok = r.text()
		p.value = touchline.TextValue(string(text))
	case dataValue:
		text, ok = r.octets()
		p.value = touchline.BytesValue(string(text))
	case boolValue:
		var b bool
		b, ok = r.boolean()
		p.value = touchline.BoolValue(b)
	case baseVersion:
		var version uint64
		if version, ok = r.version(); ok && (version < 1 || version > maxVersion) {
			return r.failed(fmt.Sprintf("version %d of SenML is not known: send versions 1 to %d", version, maxVersion), nil)
		}
	}
	return ok
}

func (d *Decoder) unit(r fieldReader) (string, bool) {
	text, ok := r.text()
	if !ok {
		return "", false
	}
	unit, err := d.names.unit(text)
	if err != nil {
		return "", r.failed("", err)
	}
	return unit, true
}

// unknownField decides about a field that RFC 8428 doesn't define: section
// 4.4 has it ignored, unless its label ends in an underscore.
func unknownField(label []byte) (what string, ok bool) {
	if n := len(label); n > 0 && label[n-1] == '_' {
		return "a label that ends in _ must be understood (RFC 8428, section 4.4), and this one is not: leave it out", false
	}
	return "", true
}

// record resolves the record that was read (RFC 8428, section 4.6) and
// appends its samples: the value's, and the sum's.
func (d *Decoder) record() *Error {
	p := &d.senml
	values := p.labels & valueLabels
	if values == 0 && !p.labels.has(fieldSum) {
		if p.labels != 0 && p.labels&^baseLabels == 0 {
			return nil // base fields only, for the records that follow
		}
		return wrong("", `the record has no value: give one of "v", "vs", "vb", "vd" and "s" (plain objects go one to a payload, not in an array)`, nil)
	}
	if bits.OnesCount16(uint16(values)) > 1 {
		return wrong("", `the record has more than one of "v", "vs", "vb" and "vd": send a record for each`, nil)
	}
	sample := touchline.Sample{Value: p.value, Unit: p.unit}
	if !p.labels.has(fieldUnit) {
		sample.Unit = p.baseUnit
	}
	if err := d.resolveTime(&sample); err != nil {
		return err
	}
	if err := d.resolveName(&sample); err != nil {
		return err
	}
	if values.has(fieldValue) {
		f, ok := addBase(p.number, p.baseValue, p.base.has(baseValue))
		if !ok {
			return wrong("v", "base value and value together: "+tooLarge, nil)
		}
		sample.Value = touchline.NumberValue(f)
	}
	if values != 0 {
		d.out = append(d.out, sample)
	}
	if p.labels.has(fieldSum) || p.base.has(baseSum) {
		return d.recordSum(sample)
	}
	return nil
}

// recordSum appends the sample of the record's sum, given that of its value.
func (d *Decoder) recordSum(sample touchline.Sample) *Error {
	p := &d.senml
	sum, ok := addBase(p.sum, p.baseSum, p.base.has(baseSum))
	if !ok {
		return wrong("s", "base sum and sum together: "+tooLarge, nil)
	}
	p.resolved = append(p.resolved, ".sum"...)
	parts, err := d.names.split(p.resolved)
	if err != nil {
		return wrong("s", `the sum is kept as a metric of its own, with ".sum" behind its name`, err)
	}
	sample.Metric = parts.metric
	if sample.Unit != "" {
		p.resolved = append(append(p.resolved[:0], sample.Unit...), ".s"...)
		if sample.Unit, err = d.names.unit(p.resolved); err != nil {
			return wrong("s", `the sum is kept with ".s" behind its unit`, err)
		}
	}
	sample.Value = touchline.NumberValue(sum)
	d.out = append(d.out, sample)
	return nil
}

// addBase adds a base to a number where there is one, and keeps every bit of
// the number where there is none. Finite numbers must stay finite.
func addBase(f, base float64, hasBase bool) (float64, bool) {
	if !hasBase {
		return f, true
	}
	sum := f + base
	finite := !math.IsInf(f, 0) && !math.IsInf(base, 0)
	return sum, !(finite && math.IsInf(sum, 0))
}

// absoluteTime is where SenML times begin to be absolute, in nanoseconds;
// those below count from now (RFC 8428, section 4.5.3).
const absoluteTime = (1 << 28) * 1e9

func (d *Decoder) resolveTime(sample *touchline.Sample) *Error {
	p := &d.senml
	t, ok := addInt64(p.baseTime, p.time)
	if ok && t < absoluteTime {
		t, ok = addInt64(d.src.Now, t)
		sample.Stamped = true // as right as our clock is
	}
	if !ok {
		return wrong("t", secondsBounds, nil)
	}
	if err := d.checkTime(t); err != nil {
		return wrong("t", "SenML counts seconds", err)
	}
	sample.Time = t
	return nil
}

const secondsBounds = "the time does not fit: SenML counts seconds, here up to the year 2262"

// resolveName leaves the whole name, as the names table has it, in resolved.
func (d *Decoder) resolveName(sample *touchline.Sample) *Error {
	p := &d.senml
	p.resolved = append(append(p.resolved[:0], p.baseName...), p.name...)
	if len(p.resolved) == 0 {
		if d.src.Sensor == "" || d.src.Metric == "" {
			return wrong("n", `the record has no name: give "bn" or "n", or send to sensors/<sensor>/<metric>`, nil)
		}
		// the slash keeps a metric that has slashes itself in one piece
		p.resolved = append(append(append(p.resolved, d.src.Sensor...), '/'), d.src.Metric...)
	}
	parts, err := d.names.split(p.resolved)
	if err != nil {
		return wrong("n", "", err)
	}
	sample.Sensor, sample.Metric = parts.sensor, parts.metric
	if parts.sensor == "" {
		sample.Sensor = d.src.Sensor
		if d.src.Sensor == "" {
			return wrong("n", noSensor, nil)
		}
	}
	return nil
}

// wrong is an Error whose place the caller fills in.
func wrong(member, what string, cause error) *Error {
	return &Error{Member: member, Record: -1, Offset: -1, What: what, Err: cause}
}
