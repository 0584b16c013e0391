package wire

import (
	"errors"
	"fmt"
	"slices"

	"touchline"
)

// readValues fills values, of which there is at least one, with the next value
// column.
func (d *Decoder) readValues(values []touchline.Value) error {
	if len(d.modes.data) > 0 && d.modes.data[0] == modeMixed {
		d.modes.byte()
		return d.readMixed(values)
	}
	_, err := d.readUniform(values)
	return err
}

// readUniform reads a column of one kind, and says which.
func (d *Decoder) readUniform(values []touchline.Value) (touchline.Kind, error) {
	mode := d.modes.byte()
	if d.modes.bad {
		return 0, errors.New("mode is cut off")
	}
	d.ints = slices.Grow(d.ints[:0], len(values))[:len(values)]
	exceptions, err := d.in.read(d.ints, 0)
	if err != nil {
		return 0, err
	}
	if exceptions && mode >= modeFloat {
		return 0, fmt.Errorf("exceptions in a column of mode 0x%02x", mode)
	}
	switch mode {
	case modeText:
		return touchline.Text, d.readTexts(values, touchline.TextValue)
	case modeBytes:
		return touchline.Bytes, d.readTexts(values, touchline.BytesValue)
	case modeBool:
		return touchline.Bool, d.readBools(values)
	}
	return touchline.Number, d.readNumbers(values, mode, exceptions)
}

func (d *Decoder) readNumbers(values []touchline.Value, mode byte, exceptions bool) error {
	d.floats = slices.Grow(d.floats[:0], len(values))[:len(values)]
	if err := unscale(d.floats, d.ints, mode); err != nil {
		return err
	}
	if exceptions {
		if err := d.in.exceptions(d.floats); err != nil {
			return err
		}
	}
	for i, f := range d.floats {
		values[i] = touchline.NumberValue(f)
	}
	return nil
}

// readTexts cuts texts of the lengths in d.ints off d.text.
func (d *Decoder) readTexts(values []touchline.Value, of func(string) touchline.Value) error {
	for i, n := range d.ints {
		if n < 0 || n > int64(len(d.text)) {
			return fmt.Errorf("text of %d bytes: %d are left", n, len(d.text))
		}
		values[i] = of(d.text[:n])
		d.text = d.text[n:]
	}
	return nil
}

func (d *Decoder) readBools(values []touchline.Value) error {
	for i, x := range d.ints {
		if x != 0 && x != 1 {
			return fmt.Errorf("boolean is %d: want 0 or 1", x)
		}
		values[i] = touchline.BoolValue(x == 1)
	}
	return nil
}

// readMixed reads a column of several kinds: a column of kinds, then one of
// each kind that is there, in the order of their numbers.
func (d *Decoder) readMixed(values []touchline.Value) error {
	d.ints = slices.Grow(d.ints[:0], len(values))[:len(values)]
	if exceptions, err := d.in.read(d.ints, 0); err != nil || exceptions {
		return errors.Join(errors.New("kinds are malformed"), err)
	}
	d.kinds = d.kinds[:0]
	var counts [touchline.Bytes + 1]int
	for _, x := range d.ints {
		if x < 0 || x > int64(touchline.Bytes) {
			return fmt.Errorf("unknown kind %d", x)
		}
		counts[x]++
		d.kinds = append(d.kinds, touchline.Kind(x))
	}
	for want := range touchline.Bytes + 1 {
		n := counts[want]
		if n == 0 {
			continue
		}
		d.mixed = slices.Grow(d.mixed[:0], n)[:n]
		kind, err := d.readUniform(d.mixed)
		if err != nil {
			return err
		}
		if kind != want {
			return fmt.Errorf("column of %s stands for one of %s", kind, want)
		}
		next := 0
		for i, k := range d.kinds {
			if k == want {
				values[i] = d.mixed[next]
				next++
			}
		}
	}
	return nil
}
