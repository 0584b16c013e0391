package touchline_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"touchline"
)

func TestValue_KeepsEveryBit(t *testing.T) {
	for _, bits := range []uint64{0, 1 << 63, math.Float64bits(1.5), 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000001, 0x7ff0000000000001, 1} {
		v := touchline.NumberValue(math.Float64frombits(bits))
		if got := math.Float64bits(v.Float()); got != bits {
			t.Errorf("got %016x, want %016x", got, bits)
		}
		if v.Kind() != touchline.Number || v.Text() != "" || v.Bool() {
			t.Errorf("%016x is not just a number: %+v", bits, v)
		}
		if v != touchline.NumberValue(math.Float64frombits(bits)) {
			t.Errorf("%016x is not equal to itself", bits)
		}
	}
	if touchline.NumberValue(0) == touchline.NumberValue(math.Copysign(0, -1)) {
		t.Error("0 equals -0")
	}
}

func TestValue_KindsDiffer(t *testing.T) {
	values := []touchline.Value{
		{}, touchline.NumberValue(1), touchline.BoolValue(false), touchline.BoolValue(true),
		touchline.TextValue(""), touchline.TextValue("1"), touchline.BytesValue(""), touchline.BytesValue("1"),
	}
	for i, a := range values {
		for j, b := range values {
			if (a == b) != (i == j) {
				t.Errorf("%+v == %+v is %v", a, b, a == b)
			}
		}
	}
	if zero := values[0]; zero != touchline.NumberValue(0) {
		t.Error("the zero Value is not the number 0")
	}
	for v, want := range map[touchline.Value]string{
		touchline.NumberValue(1): "number", touchline.TextValue("x"): "text",
		touchline.BoolValue(true): "boolean", touchline.BytesValue("x"): "bytes",
	} {
		if got := v.Kind().String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if v.Kind() != touchline.Number && v.Float() != 0 {
			t.Errorf("a %s has the number %v", want, v.Float())
		}
	}
	if got := touchline.Kind(9).String(); got != "kind 9" {
		t.Errorf("got %s", got)
	}
	if !touchline.BoolValue(true).Bool() || touchline.BoolValue(false).Bool() || touchline.TextValue("x").Text() != "x" || touchline.BytesValue("\xff").Text() != "\xff" {
		t.Error("a value does not come back")
	}
}

func TestEpoch_TextRoundTrip(t *testing.T) {
	e := touchline.NewEpoch()
	if e == touchline.NewEpoch() {
		t.Fatal("two epochs are the same")
	}
	got, err := touchline.ParseEpoch(e.String())
	if err != nil || got != e || len(e.String()) != 32 {
		t.Fatalf("%s parses to %s, %v", e, got, err)
	}
	if upper, err := touchline.ParseEpoch(strings.ToUpper(e.String())); err != nil || upper != e {
		t.Errorf("upper case: %v", err)
	}
	data, err := json.Marshal(map[touchline.Epoch]touchline.Epoch{e: e})
	if want := `{"` + e.String() + `":"` + e.String() + `"}`; err != nil || string(data) != want {
		t.Fatalf("got %s, %v", data, err)
	}
	var back map[touchline.Epoch]touchline.Epoch
	if err := json.Unmarshal(data, &back); err != nil || back[e] != e {
		t.Errorf("%s parses to %v, %v", data, back, err)
	}
}

func TestParseEpoch_RefusesWhatIsNone(t *testing.T) {
	good := strings.Repeat("0a", 16)
	for _, bad := range []string{"", "00", good[1:], good + "0", good[:31] + "g", good[:31] + "\x00", strings.Repeat("ä", 16)} {
		if e, err := touchline.ParseEpoch(bad); err == nil || len(err.Error()) > 200 {
			t.Errorf("%q: got %s, %v", bad, e, err)
		}
	}
	e := touchline.Epoch{1}
	if err := e.UnmarshalText([]byte("nonsense")); err == nil || e != (touchline.Epoch{1}) {
		t.Errorf("after an error the epoch is %s, %v", e, err)
	}
}

func TestRange_CountAndValid(t *testing.T) {
	for r, count := range map[touchline.Range]uint64{
		{First: 1, Last: 1}:                1,
		{First: 1, Last: touchline.MaxSeq}: touchline.MaxSeq,
		{First: 5, Last: 9}:                5,
	} {
		if !r.Valid() || r.Count() != count {
			t.Errorf("%v: %v, %d numbers", r, r.Valid(), r.Count())
		}
	}
}
