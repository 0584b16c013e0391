package payload

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"touchline"
)

var encoders = []struct {
	format Format
	append func([]byte, []touchline.Sample) ([]byte, error)
}{
	{SenMLJSON, AppendSenMLJSON},
	{SenMLCBOR, AppendSenMLCBOR},
}

// hardSamples are what an encoder may get wrong.
var hardSamples = []touchline.Sample{
	{Sensor: "belt", Metric: "hr", Unit: "beat/min", Time: 1_700_000_000_123_456_789, Value: touchline.NumberValue(142)},
	{Sensor: "belt", Metric: "hr", Time: 1_700_000_000_000_000_000, Value: touchline.NumberValue(math.Copysign(0, -1))},
	{Sensor: "belt", Metric: "a/b//c/", Time: 1_700_000_000_000_000_001, Value: touchline.NumberValue(0.1)},
	{Sensor: "vest 日本 \"q\" \\", Metric: "größe\u2028", Unit: "µ\"V\"", Time: absoluteTime, Value: touchline.NumberValue(math.SmallestNonzeroFloat64)},
	{Sensor: "vest 日本 \"q\" \\", Metric: "x.sum", Unit: "W.s", Time: now, Value: touchline.NumberValue(math.MaxFloat64)},
	{Sensor: "urn:dev:ow:1", Metric: "_raw", Time: now, Value: touchline.BytesValue("\x00\xff\xfe")},
	{Sensor: "belt", Metric: "text", Time: now, Value: touchline.TextValue("\x00\x1f\x7f\n\r\t\"\\/<>&\u2029😀")},
	{Sensor: "belt", Metric: "empty", Time: now, Value: touchline.TextValue("")},
	{Sensor: "belt", Metric: "empty", Time: now, Value: touchline.BytesValue("")},
	{Sensor: "belt", Metric: "yes", Time: now, Value: touchline.BoolValue(true)},
	{Sensor: "belt", Metric: "no", Time: now, Value: touchline.BoolValue(false)},
	{Sensor: "belt", Metric: "n", Time: now, Value: touchline.NumberValue(1 << 53)},
	{Sensor: "belt", Metric: "n", Time: now, Value: touchline.NumberValue(-(1<<32 - 1))},
	{Sensor: "belt", Metric: "n", Time: now, Value: touchline.NumberValue(1e21)},
	{Sensor: "belt", Metric: "n", Time: now, Value: touchline.NumberValue(-1e-7)},
	{Sensor: "belt", Metric: "n", Time: now, Value: touchline.NumberValue(1.5)},
}

func TestAppendSenML_ReadsBackAsTheSameSamples(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	samples := hardSamples
	for range 2000 {
		f := math.Float64frombits(random.Uint64())
		if math.IsNaN(f) || math.IsInf(f, 0) {
			continue
		}
		samples = append(samples, touchline.Sample{
			Sensor: "s" + strconv.Itoa(random.IntN(3)), Metric: "m",
			Time: absoluteTime + random.Int64N(now-absoluteTime), Value: touchline.NumberValue(f),
		})
	}
	for _, e := range encoders {
		t.Run(e.format.String(), func(t *testing.T) {
			data, err := e.append([]byte("kept"), samples)
			if err != nil {
				t.Fatal(err)
			}
			if string(data[:4]) != "kept" {
				t.Fatalf("dst was overwritten: %q", data[:4])
			}
			for _, format := range []Format{Auto, e.format} {
				got, err := NewDecoder().Decode(nil, format, Source{Now: now}, data[4:])
				if err != nil {
					t.Fatal(err)
				}
				equal(t, got, samples)
			}
		})
	}
}

func TestAppendSenMLCBOR_CarriesWhatJSONCannot(t *testing.T) {
	var samples []touchline.Sample
	for _, bits := range []uint64{0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000, 0x7ff0000000000001, 0xfff4000020000000, 0xffffffffffffffff} {
		samples = append(samples, itsOwn(sample("x", now, touchline.NumberValue(math.Float64frombits(bits)))))
	}
	data, err := AppendSenMLCBOR(nil, samples)
	if err != nil {
		t.Fatal(err)
	}
	got, err := NewDecoder().Decode(nil, SenMLCBOR, Source{Now: now}, data)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, samples)
}

func TestAppendSenML_WritesCompactPacks(t *testing.T) {
	samples := []touchline.Sample{
		{Sensor: "belt", Metric: "hr", Unit: "beat/min", Time: 1_700_000_000_500_000_000, Value: touchline.NumberValue(142)},
		{Sensor: "belt", Metric: "on", Time: 1_700_000_000_000_000_000, Value: touchline.BoolValue(true)},
		{Sensor: "vest", Metric: "x", Time: 1_700_000_000_000_000_000, Value: touchline.NumberValue(-0.5)},
	}
	got, err := AppendSenMLJSON(nil, samples)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"bn":"belt/","n":"hr","u":"beat/min","t":1700000000.5,"v":142},` +
		`{"n":"on","t":1700000000,"vb":true},` +
		`{"bn":"vest/","n":"x","t":1700000000,"v":-0.5}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	binary, err := AppendSenMLCBOR(nil, samples)
	if err != nil {
		t.Fatal(err)
	}
	wantBinary := unhex(t, `83
		a5 21 65 62 65 6c 74 2f 00 62 68 72 01 68 62 65 61 74 2f 6d 69 6e 06 c4 82 20 1b 00 00 00 03 f5 47 6a 05 02 18 8e
		a3 00 62 6f 6e 06 1a 65 53 f1 00 04 f5
		a4 21 65 76 65 73 74 2f 00 61 78 06 1a 65 53 f1 00 02 fa bf 00 00 00`)
	if string(binary) != string(wantBinary) {
		t.Errorf("got  %x\nwant %x", binary, wantBinary)
	}
	for _, e := range encoders {
		if empty, err := e.append(nil, nil); err != nil || len(empty) == 0 {
			t.Errorf("%v: no samples gave %q, %v", e.format, empty, err)
		}
	}
}

// TestAppendSenMLJSON_PacksJoin holds the promise that lets an export be
// written in parts.
func TestAppendSenMLJSON_PacksJoin(t *testing.T) {
	var joined []byte
	for i := 0; i < len(hardSamples); i += 3 {
		pack, err := AppendSenMLJSON(nil, hardSamples[i:min(i+3, len(hardSamples))])
		if err != nil {
			t.Fatal(err)
		}
		joined = append(append(joined, ','), pack[1:len(pack)-1]...)
	}
	joined[0] = '['
	got, err := NewDecoder().Decode(nil, SenMLJSON, Source{Now: now}, append(joined, ']'))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, hardSamples)
}

func TestAppendSenML_RefusesWhatItCannotCarry(t *testing.T) {
	fine := touchline.Sample{Sensor: "belt", Metric: "x", Time: now, Value: touchline.NumberValue(1)}
	with := func(change func(*touchline.Sample)) touchline.Sample {
		s := fine
		change(&s)
		return s
	}
	tests := []struct {
		s          touchline.Sample
		json, cbor string
	}{
		{with(func(s *touchline.Sample) { s.Value = touchline.NumberValue(math.NaN()) }),
			`SenML JSON: record 1, "v": JSON has no form for NaN: export as SenML CBOR`, ``},
		{with(func(s *touchline.Sample) { s.Value = touchline.NumberValue(math.Inf(-1)) }),
			`SenML JSON: record 1, "v": JSON has no form for -Inf: export as SenML CBOR`, ``},
		{with(func(s *touchline.Sample) { s.Time = absoluteTime - 1 }),
			`SenML JSON: record 1, "t": 268435455999999999 ns is before 1978-07-04T21:24:16Z (2^28 s), which SenML takes to be relative to now: export in another format`,
			`SenML CBOR: record 1, "t": 268435455999999999 ns is before 1978-07-04T21:24:16Z (2^28 s), which SenML takes to be relative to now: export in another format`},
		{with(func(s *touchline.Sample) { s.Sensor = "a/b" }),
			`SenML JSON: record 1: sensor name "a/b" has '/' at byte 1, which is not allowed there`,
			`SenML CBOR: record 1: sensor name "a/b" has '/' at byte 1, which is not allowed there`},
		{with(func(s *touchline.Sample) { s.Sensor = "" }), `SenML JSON: record 1: sensor name is empty`, `SenML CBOR: record 1: sensor name is empty`},
		{with(func(s *touchline.Sample) { s.Metric = "" }), `SenML JSON: record 1, "n": metric name is empty`, `SenML CBOR: record 1, "n": metric name is empty`},
		{with(func(s *touchline.Sample) { s.Unit = "\n" }),
			`SenML JSON: record 1, "u": unit "\n" has the control character 0x0a at byte 0`,
			`SenML CBOR: record 1, "u": unit "\n" has the control character 0x0a at byte 0`},
		{with(func(s *touchline.Sample) { s.Value = touchline.TextValue("\xff") }),
			`SenML JSON: record 1, "vs": the text is not valid UTF-8: record it as bytes`,
			`SenML CBOR: record 1, "vs": the text is not valid UTF-8: record it as bytes`},
	}
	for _, tt := range tests {
		for i, want := range []string{tt.json, tt.cbor} {
			dst, err := encoders[i].append([]byte("kept"), []touchline.Sample{fine, tt.s, fine})
			if want == "" {
				if err != nil {
					t.Errorf("%v: %+v gave %v", encoders[i].format, tt.s, err)
				}
				continue
			}
			var e *Error
			if !errors.As(err, &e) || e.Record != 1 || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if string(dst) != "kept" {
				t.Errorf("dst became %q", dst)
			}
		}
	}
}

func TestAppendFloat_IsShortestAndExact(t *testing.T) {
	for _, tt := range []struct {
		f    float64
		want string
	}{
		{0, "0"}, {math.Copysign(0, -1), "-0"}, {142, "142"}, {-7, "-7"}, {0.1, "0.1"}, {5e-324, "5e-324"},
		{1e-6, "0.000001"}, {1e-7, "1e-7"}, {1.5e-10, "1.5e-10"}, {1e15, "1000000000000000"}, {123456789012345680, "123456789012345680"},
		{1e20, "100000000000000000000"}, {1e21, "1e+21"}, {math.MaxFloat64, "1.7976931348623157e+308"}, {-1e100, "-1e+100"}, {1e9, "1000000000"},
		{math.NaN(), "NaN"}, {math.Inf(1), "+Inf"}, {math.Inf(-1), "-Inf"},
	} {
		if got := string(AppendFloat([]byte("x"), tt.f)); got != "x"+tt.want {
			t.Errorf("got %s, want x%s", got, tt.want)
		}
	}
	random := rand.New(rand.NewPCG(7, 8))
	for range 20_000 {
		f := math.Float64frombits(random.Uint64())
		if random.IntN(2) == 0 {
			f = float64(random.Int64()>>random.IntN(63)) / powersOfTen[random.IntN(6)]
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			continue
		}
		text := AppendFloat(nil, f)
		back, err := strconv.ParseFloat(string(text), 64)
		if err != nil || math.Float64bits(back) != math.Float64bits(f) || !json.Valid(text) {
			t.Fatalf("%v became %s, which reads as %v (%v)", f, text, back, err)
		}
		shortest, err := json.Marshal(f)
		if err != nil || string(shortest) != string(text) {
			t.Fatalf("%v became %s, and %s by encoding/json", f, text, shortest)
		}
	}
}

// Another library is the judge of what is CBOR.

func TestAppendSenMLCBOR_IsReadByAnotherLibrary(t *testing.T) {
	data, err := AppendSenMLCBOR(nil, hardSamples)
	if err != nil {
		t.Fatal(err)
	}
	strict, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden}.DecMode()
	if err != nil {
		t.Fatal(err)
	}
	var records []map[int]any
	if err := strict.Unmarshal(data, &records); err != nil {
		t.Fatal(err)
	}
	if len(records) != len(hardSamples) {
		t.Fatalf("%d records, want %d", len(records), len(hardSamples))
	}
	base := ""
	for i, r := range records {
		s := hardSamples[i]
		if bn, ok := r[-2].(string); ok {
			base = bn
		}
		if got := base + r[0].(string); got != s.Sensor+"/"+s.Metric {
			t.Errorf("record %d is named %q", i, got)
		}
		var same bool
		switch s.Value.Kind() {
		case touchline.Number:
			same = floatOf(r[2]) == s.Value.Float()
		case touchline.Text:
			same = r[3] == s.Value.Text()
		case touchline.Bool:
			same = r[4] == s.Value.Bool()
		case touchline.Bytes:
			b, ok := r[8].([]byte)
			same = ok && string(b) == s.Value.Text()
		}
		if !same {
			t.Errorf("record %d has %v, want %+v", i, r, s.Value)
		}
	}
}

func floatOf(v any) float64 {
	switch v := v.(type) {
	case uint64:
		return float64(v)
	case int64:
		return float64(v)
	case float64:
		return v
	}
	return math.NaN()
}

func TestDecode_ReadsWhatAnotherCBORLibraryWrites(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for _, shortest := range []cbor.ShortestFloatMode{cbor.ShortestFloatNone, cbor.ShortestFloat16} {
		mode, err := cbor.EncOptions{ShortestFloat: shortest, NaNConvert: cbor.NaNConvertNone, InfConvert: cbor.InfConvertNone}.EncMode()
		if err != nil {
			t.Fatal(err)
		}
		var records []map[any]any
		var want []touchline.Sample
		for i := range 500 {
			f := math.Float64frombits(random.Uint64())
			if math.IsNaN(f) {
				continue
			}
			name := "belt/" + strings.Repeat("n", 1+i%30)
			records = append(records,
				map[any]any{0: name, 2: f, 6: float64(1_600_000_000) + float64(i)/8, "note": []any{1, "x", map[string]any{"y": nil}}},
				map[any]any{0: name, 2: float32(i) / 4, 7: 10},
				map[any]any{0: name, 3: name, 6: cbor.Tag{Number: 4, Content: []any{-9, int64(past) - 1 + int64(i)}}},
				map[any]any{0: name, 8: []byte(name)})
			metric := name[len("belt/"):]
			want = append(want,
				sample(metric, 1_600_000_000*second+int64(i)*second/8, number64(f)),
				sample(metric, now, number64(float64(i)/4)),
				sample(metric, 1_600_000_000*second+int64(i), touchline.TextValue(name)),
				sample(metric, now, touchline.BytesValue(name)))
		}
		data, err := mode.Marshal(records)
		if err != nil {
			t.Fatal(err)
		}
		got, err := NewDecoder().Decode(nil, SenMLCBOR, Source{Now: now}, data)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, want)
	}
}
