package payload

import "fmt"

// cborLabelShift makes a CBOR label of RFC 8428, table 4, a label.
const cborLabelShift = 6

// decodeSenMLCBOR reads a pack as RFC 8428, section 6, writes it. Lengths may
// be indefinite.
func (d *Decoder) decodeSenMLCBOR(data []byte) *Error {
	r := &d.cbor
	if err := r.open(data); err != nil {
		return err
	}
	d.senml.reset()
	if r.major() != cborArray {
		r.unexpected("an array of SenML records")
		return r.err
	}
	left, indefinite := r.head()
	records := 0
	for ; r.more(&left, indefinite); records++ {
		if err := d.cborRecord(); err != nil {
			err.Record = records
			return err
		}
	}
	if records == 0 {
		return wrong("", "the pack has no record", nil)
	}
	if len(d.out) == d.start {
		return wrong("", "the pack has base fields only: give a record with a value", nil)
	}
	return nil
}

// cborRecord reads one record.
func (d *Decoder) cborRecord() *Error {
	r := &d.cbor
	if r.major() != cborMap {
		r.unexpected("a SenML record, which is a map")
		return r.err
	}
	offset := r.pos
	d.senml.begin()
	for left, indefinite := r.head(); r.more(&left, indefinite); {
		if !d.cborField() {
			return r.err
		}
	}
	if err := d.record(); err != nil {
		err.Offset = offset
		return err
	}
	return nil
}

// cborField reads one field, label and value.
func (d *Decoder) cborField() bool {
	r := &d.cbor
	offset := r.pos
	switch r.major() {
	case cborUint, cborNegInt:
		negative := r.major() == cborNegInt
		l, known := cborLabel(r, negative)
		if !known {
			r.skip()
			return true
		}
		if !d.field(l, r) {
			r.err.Member = labelNames[l]
			return false
		}
		return true
	case cborText:
		key, ok := r.text()
		if !ok {
			return false
		}
		what, ok := unknownField(key)
		if l := jsonLabel(key); l < numLabels {
			what, ok = fmt.Sprintf("in CBOR the label is the integer %d (RFC 8428, table 4)", int(l)-cborLabelShift), false
		}
		if !ok {
			r.fail(offset, what)
			r.err.Member = quotable(key)
			return false
		}
		r.skip()
		return true
	}
	return r.unexpected("a label, an integer or a text string")
}

// cborLabel reads an integer label, and whether RFC 8428 has it.
func cborLabel(r *cborReader, negative bool) (label, bool) {
	n, _ := r.head()
	if negative {
		return label(cborLabelShift - 1 - n), n < cborLabelShift
	}
	return label(n + cborLabelShift), n < uint64(numLabels)-cborLabelShift
}
