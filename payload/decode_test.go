package payload

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"touchline"
)

const (
	now  = int64(1_700_000_000_000_000_000)
	past = int64(1_600_000_000_000_000_001)
)

// sample is one that the gateway stamped if its time is within a day of now.
func sample(metric string, t int64, v touchline.Value) touchline.Sample {
	return touchline.Sample{Sensor: "belt", Metric: metric, Time: t, Value: v, Stamped: near(t, now)}
}

func near(t, now int64) bool { return max(t, now)-min(t, now) < int64(24*time.Hour) }

func stamped(s touchline.Sample) touchline.Sample {
	s.Stamped = true
	return s
}

// itsOwn is a sample with a time that the sensor gave.
func itsOwn(s touchline.Sample) touchline.Sample {
	s.Stamped = false
	return s
}

func number64(f float64) touchline.Value { return touchline.NumberValue(f) }

type good struct {
	name    string
	src     Source // "belt" and now where it is zero
	payload string
	want    []touchline.Sample
}

func testGood(t *testing.T, format Format, tests []good) {
	d := NewDecoder() // one for all, as in use
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := tt.src
			if src == (Source{}) {
				src = Source{Sensor: "belt", Now: now}
			}
			data := []byte(tt.payload)
			for _, f := range []Format{format, Auto} {
				got, err := d.Decode(nil, f, src, data)
				if err != nil {
					t.Fatalf("%v: %v", f, err)
				}
				equal(t, got, tt.want)
			}
		})
	}
}

func TestDecode_ReadsObjects(t *testing.T) {
	testGood(t, Object, []good{
		{"time in nanoseconds", Source{}, `{"t":1600000000000000001,"heart_rate":142,"x":1.5}`, []touchline.Sample{
			sample("heart_rate", past, number64(142)), sample("x", past, number64(1.5))}},
		{"time last holds for all", Source{}, `{"a":1,"b":2,"t":1600000000000000001}`, []touchline.Sample{
			sample("a", past, number64(1)), sample("b", past, number64(2))}},
		{"time as RFC 3339", Source{}, `{"t":"2020-09-13T12:26:40.000000001Z","a":1}`, []touchline.Sample{
			sample("a", past, number64(1))}},
		{"time as RFC 3339 with an offset", Source{}, `{"t":"2020-09-13T14:26:40.000000001+02:00","a":1}`, []touchline.Sample{
			sample("a", past, number64(1))}},
		{"no time is now", Source{}, `{"a":1}`, []touchline.Sample{sample("a", now, number64(1))}},
		{"null time is now", Source{}, `{"t":null,"a":1}`, []touchline.Sample{sample("a", now, number64(1))}},
		{"a time ahead, but not a century", Source{}, `{"t":1700000060000000000,"a":1}`, []touchline.Sample{
			itsOwn(sample("a", now+60*second, number64(1)))}},
		{"every kind", Source{}, `{"n":-1.25e2,"text":"on","yes":true,"no":false,"nothing":null}`, []touchline.Sample{
			sample("n", now, number64(-125)), sample("text", now, touchline.TextValue("on")),
			sample("yes", now, touchline.BoolValue(true)), sample("no", now, touchline.BoolValue(false))}},
		{"nested", Source{}, `{"pos":{"x":1,"y":{"z":2}},"acc":[3,[4,{"q":5}]],"e":{},"f":[]}`, []touchline.Sample{
			sample("pos.x", now, number64(1)), sample("pos.y.z", now, number64(2)), sample("acc.0", now, number64(3)),
			sample("acc.1.0", now, number64(4)), sample("acc.1.1.q", now, number64(5))}},
		{"t deeper down is a metric", Source{}, `{"pos":{"t":5},"T":6}`, []touchline.Sample{
			sample("pos.t", now, number64(5)), sample("T", now, number64(6))}},
		{"members that repeat", Source{}, `{"a":1,"a":2}`, []touchline.Sample{
			sample("a", now, number64(1)), sample("a", now, number64(2))}},
		{"metric prefix", Source{Sensor: "belt", Metric: "imu", Now: now}, `{"acc":{"x":1},"t":1600000000000000001}`, []touchline.Sample{
			sample("imu.acc.x", past, number64(1))}},
		{"escapes", Source{}, `{"\u0074":1600000000000000001,"caf\u00e9\/":"\"\\\/\b\f\n\r\t\ud83d\ude00\u0000"}`, []touchline.Sample{
			sample("café/", past, touchline.TextValue("\"\\/\b\f\n\r\t😀\x00"))}},
		{"UTF-8", Source{}, `{"größe":"日本😀"}`, []touchline.Sample{sample("größe", now, touchline.TextValue("日本😀"))}},
		{"white space", Source{}, " \t\r\n{ \"a\" : 1 , \"b\" : [ 2 , 3 ] } \n", []touchline.Sample{
			sample("a", now, number64(1)), sample("b.0", now, number64(2)), sample("b.1", now, number64(3))}},
		{"numbers", Source{}, `{"a":-0,"b":0.1,"c":1e22,"d":1e23,"e":123456789012345678901234567890,"f":4.9e-324,"g":1.7976931348623157e308,"h":1E+2,"i":9007199254740993,"j":1e-400}`, []touchline.Sample{
			sample("a", now, number64(math.Copysign(0, -1))), sample("b", now, number64(0.1)), sample("c", now, number64(1e22)),
			sample("d", now, number64(1e23)), sample("e", now, number64(123456789012345678901234567890)),
			sample("f", now, number64(math.SmallestNonzeroFloat64)), sample("g", now, number64(math.MaxFloat64)),
			sample("h", now, number64(100)), sample("i", now, number64(9007199254740992)), sample("j", now, number64(0))}},
		{"sixteen levels", Source{}, `{"a":` + strings.Repeat("[", 15) + "1" + strings.Repeat("]", 15) + "}", []touchline.Sample{
			sample("a"+strings.Repeat(".0", 15), now, number64(1))}},
	})
}

func TestDecode_ReadsBareValues(t *testing.T) {
	src := Source{Sensor: "belt", Metric: "zone/hr", Now: now}
	testGood(t, Bare, []good{
		{"integer", src, "142", []touchline.Sample{sample("zone/hr", now, number64(142))}},
		{"decimal", src, " -1.5e-3\n", []touchline.Sample{sample("zone/hr", now, number64(-0.0015))}},
		{"true", src, "true", []touchline.Sample{sample("zone/hr", now, touchline.BoolValue(true))}},
		{"false", src, "false", []touchline.Sample{sample("zone/hr", now, touchline.BoolValue(false))}},
		{"text", src, `"on é"`, []touchline.Sample{sample("zone/hr", now, touchline.TextValue("on é"))}},
		{"empty text", src, `""`, []touchline.Sample{sample("zone/hr", now, touchline.TextValue(""))}},
	})
}

func TestDecode_ReadsSenMLJSON(t *testing.T) {
	withUnit := func(s touchline.Sample, unit string) touchline.Sample {
		s.Unit = unit
		return s
	}
	testGood(t, SenMLJSON, []good{
		{"sensor and metric at the first slash", Source{Now: now}, `[{"n":"belt/leg/left","v":1}]`, []touchline.Sample{
			sample("leg/left", now, number64(1))}},
		{"without a slash", Source{}, `[{"bn":"leg.","n":"left","v":1}]`, []touchline.Sample{sample("leg.left", now, number64(1))}},
		{"without a name", Source{Sensor: "belt", Metric: "a/b", Now: now}, `[{"v":1}]`, []touchline.Sample{sample("a/b", now, number64(1))}},
		{"a name wins over the topic's metric", Source{Sensor: "belt", Metric: "x", Now: now}, `[{"n":"y","v":1},{"n":"vest/z","v":2}]`, []touchline.Sample{
			sample("y", now, number64(1)), from("vest", sample("z", now, number64(2)))}},
		{"base fields hold until replaced", Source{}, `[{"bn":"a","bt":1600000000,"bu":"m","v":1},{"bn":"b","v":2},{"bu":"s","t":1,"v":3},{"u":"","v":4}]`, []touchline.Sample{
			withUnit(sample("a", 1_600_000_000*second, number64(1)), "m"), withUnit(sample("b", 1_600_000_000*second, number64(2)), "m"),
			withUnit(sample("b", 1_600_000_001*second, number64(3)), "s"), sample("b", 1_600_000_000*second, number64(4))}},
		{"base fields after the record's own", Source{}, `[{"v":1,"n":"x","t":0.5,"bt":1600000000,"bn":"pre."}]`, []touchline.Sample{
			sample("pre.x", 1_600_000_000*second+second/2, number64(1))}},
		{"base value", Source{}, `[{"bn":"a","bv":20,"v":0.5},{"v":-1},{"vs":"x"}]`, []touchline.Sample{
			sample("a", now, number64(20.5)), sample("a", now, number64(19)), sample("a", now, touchline.TextValue("x"))}},
		{"minus zero stays", Source{}, `[{"n":"a","v":-0}]`, []touchline.Sample{sample("a", now, number64(math.Copysign(0, -1)))}},
		{"sum alone", Source{}, `[{"n":"power","u":"W","s":7200}]`, []touchline.Sample{withUnit(sample("power.sum", now, number64(7200)), "W.s")}},
		{"sum and value", Source{Now: now}, `[{"n":"belt/power","s":7200,"v":20}]`, []touchline.Sample{
			sample("power", now, number64(20)), sample("power.sum", now, number64(7200))}},
		{"base sum", Source{}, `[{"n":"p","bs":100,"s":1},{"n":"p","v":3}]`, []touchline.Sample{
			sample("p.sum", now, number64(101)), sample("p", now, number64(3)), sample("p.sum", now, number64(100))}},
		{"relative time", Source{}, `[{"n":"a","t":-0.000000001,"v":1},{"n":"a","t":60.5,"v":2},{"n":"a","t":268435455.999999999,"v":3},{"n":"a","t":268435456,"v":4}]`, []touchline.Sample{
			sample("a", now-1, number64(1)), sample("a", now+60_500_000_000, number64(2)),
			stamped(sample("a", now+268_435_455_999_999_999, number64(3))), sample("a", 268_435_456*second, number64(4))}},
		{"base time and time make it absolute together", Source{}, `[{"n":"a","bt":268435455.5,"t":0.5,"v":1}]`, []touchline.Sample{
			sample("a", 268_435_456*second, number64(1))}},
		{"nanoseconds survive", Source{}, `[{"n":"a","bt":1.600000000000000001e9,"v":1},{"n":"a","t":0.123456788,"v":2}]`, []touchline.Sample{
			sample("a", past, number64(1)), sample("a", past+123_456_788, number64(2))}},
		{"unknown fields are ignored", Source{}, `[{"n":"a","l":"</x>","_x":{"v":[1,{"y":null}]},"v":1,"vx":"\u00e9","2":1e999}]`, []touchline.Sample{
			sample("a", now, number64(1))}},
		{"versions", Source{}, `[{"n":"a","bver":10,"v":1},{"bver":1,"n":"b","v":2}]`, []touchline.Sample{
			sample("a", now, number64(1)), sample("b", now, number64(2))}},
		{"update time is not kept", Source{}, `[{"n":"a","ut":10,"v":1}]`, []touchline.Sample{sample("a", now, number64(1))}},
		{"data with and without padding", Source{}, `[{"n":"a","vd":"-_8"},{"n":"b","vd":"-_8="},{"n":"c","vd":""}]`, []touchline.Sample{
			sample("a", now, touchline.BytesValue("\xfb\xff")), sample("b", now, touchline.BytesValue("\xfb\xff")), sample("c", now, touchline.BytesValue(""))}},
		{"escaped labels and names", Source{}, `[{"\u006e":"caf\u00e9","v":1,"bn":"le "}]`, []touchline.Sample{sample("le café", now, number64(1))}},
	})
}

func TestDecode_ReadsSenMLCBOR(t *testing.T) {
	// {0: "a", 2: value} and its like; keys as in RFC 8428, table 4
	tests := []struct {
		name, dump string
		want       []touchline.Sample
	}{
		{"integers", "82 a2 00 61 61 02 18 64 a2 00 61 61 02 39 01 f3",
			[]touchline.Sample{sample("a", now, number64(100)), sample("a", now, number64(-500))}},
		{"the largest integers", "82 a2 00 61 61 02 1b ff ff ff ff ff ff ff ff a2 00 61 61 02 3b ff ff ff ff ff ff ff ff",
			[]touchline.Sample{sample("a", now, number64(1<<64)), sample("a", now, number64(-1<<64))}},
		{"half", "81 a2 00 61 61 02 f9 35 55", []touchline.Sample{sample("a", now, number64(0.333251953125))}},
		{"half, subnormal", "81 a2 00 61 61 02 f9 80 01", []touchline.Sample{sample("a", now, number64(-5.960464477539063e-8))}},
		{"half, infinite", "81 a2 00 61 61 02 f9 fc 00", []touchline.Sample{sample("a", now, number64(math.Inf(-1)))}},
		{"half, NaN with its bits", "81 a2 00 61 61 02 f9 7c 01", []touchline.Sample{sample("a", now, number64(math.Float64frombits(0x7ff0040000000000)))}},
		{"single", "81 a2 00 61 61 02 fa 3d cc cc cd", []touchline.Sample{sample("a", now, number64(float64(float32(0.1))))}},
		{"single, signalling NaN with its bits", "81 a2 00 61 61 02 fa ff 80 00 01", []touchline.Sample{sample("a", now, number64(math.Float64frombits(0xfff0000020000000)))}},
		{"double", "81 a2 00 61 61 02 fb 3f b9 99 99 99 99 99 9a", []touchline.Sample{sample("a", now, number64(0.1))}},
		{"double, NaN with its bits", "81 a2 00 61 61 02 fb 7f f0 00 00 00 00 00 01", []touchline.Sample{sample("a", now, number64(math.Float64frombits(0x7ff0000000000001)))}},
		{"decimal fraction", "81 a2 00 61 61 02 c4 82 21 19 6a b3", []touchline.Sample{sample("a", now, number64(273.15))}},
		{"decimal fraction, indefinite", "81 a2 00 61 61 02 c4 9f 21 19 6a b3 ff", []touchline.Sample{sample("a", now, number64(273.15))}},
		{"decimal fraction of a bignum", "81 a2 00 61 61 02 c4 82 20 c2 49 01 00 00 00 00 00 00 00 00", []touchline.Sample{sample("a", now, number64(1844674407370955161.6))}},
		{"bignums", "82 a2 00 61 61 02 c2 49 01 00 00 00 00 00 00 00 00 a2 00 61 61 02 c3 49 01 00 00 00 00 00 00 00 00",
			[]touchline.Sample{sample("a", now, number64(18446744073709551616)), sample("a", now, number64(-18446744073709551617))}},
		{"text, boolean, bytes", "83 a2 00 61 61 03 62 c3 a9 a2 00 61 62 04 f5 a2 00 61 63 08 42 fb ff",
			[]touchline.Sample{sample("a", now, touchline.TextValue("é")), sample("b", now, touchline.BoolValue(true)), sample("c", now, touchline.BytesValue("\xfb\xff"))}},
		{"indefinite lengths", "9f bf 00 7f 61 61 61 62 ff 02 01 ff a2 00 61 63 08 5f 41 01 41 02 ff ff",
			[]touchline.Sample{sample("ab", now, number64(1)), sample("c", now, touchline.BytesValue("\x01\x02"))}},
		{"unknown labels are ignored", "81 a6 00 61 61 02 01 09 82 01 a1 01 02 38 20 5f 41 01 ff 61 7a c1 7f 61 61 ff 1b ff ff ff ff ff ff ff ff f6",
			[]touchline.Sample{sample("a", now, number64(1))}},
		{"time as an integer", "81 a3 00 61 61 02 01 06 1a 5f 5e 10 00", []touchline.Sample{sample("a", 1_600_000_000*second, number64(1))}},
		{"time as a decimal fraction", "81 a3 00 61 61 02 01 06 c4 82 28 1b 16 34 57 85 d8 a0 00 01", []touchline.Sample{sample("a", past, number64(1))}},
		{"time as floats", "82 a3 22 fb 41 d7 d7 84 00 20 00 00 00 61 61 02 01 a3 00 61 61 02 01 06 f9 38 00",
			[]touchline.Sample{sample("a", 1_600_000_000_500_000_000, number64(1)), sample("a", 1_600_000_001_000_000_000, number64(1))}},
		{"relative time", "81 a3 00 61 61 02 01 06 24", []touchline.Sample{sample("a", now-5*second, number64(1))}},
		{"base value and sum", "82 a4 24 0a 25 14 00 61 61 02 01 a2 00 61 62 05 05", []touchline.Sample{
			sample("a", now, number64(11)), sample("a.sum", now, number64(20)), sample("b.sum", now, number64(25))}},
	}
	d := NewDecoder()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, f := range []Format{SenMLCBOR, Auto} {
				got, err := d.Decode(nil, f, Source{Sensor: "belt", Now: now}, unhex(t, tt.dump))
				if err != nil {
					t.Fatal(err)
				}
				equal(t, got, tt.want)
			}
		})
	}
}

func TestDecode_AppendsAndReturnsDstUnchangedOnError(t *testing.T) {
	d := NewDecoder()
	src := Source{Sensor: "belt", Now: now}
	dst, err := d.Decode(nil, Auto, src, []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if dst, err = d.Decode(dst, Auto, src, []byte(`[{"n":"b","v":2},{"n":"c","v":3,"t":x}]`)); err == nil || len(dst) != 1 {
		t.Fatalf("%d samples, error %v; want 1 and an error", len(dst), err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Record != 1 || e.Member != "t" || e.Format != SenMLJSON {
		t.Errorf("error %#v does not say where", err)
	}
	if dst, err = d.Decode(dst, Auto, src, []byte(`[{"n":"b","v":2}]`)); err != nil {
		t.Fatal(err)
	}
	equal(t, dst, []touchline.Sample{sample("a", now, number64(1)), sample("b", now, number64(2))})
}

func TestDecode_KeepsNothingOfThePayload(t *testing.T) {
	d := NewDecoder()
	payloads := [][]byte{
		[]byte(`{"metric":"some text","\u006detric2":"\u0074ext"}`),
		[]byte(`[{"bn":"belt/","n":"metric","u":"unit","vs":"some text"},{"n":"m","u":"\u0075","vd":"aGkgCg","s":1}]`),
		unhex(t, "82 a3 00 61 61 01 61 6d 03 62 c3 a9 a2 00 61 63 08 42 fb ff"),
	}
	for _, data := range payloads {
		src := Source{Sensor: "belt", Now: now}
		first, err := d.Decode(nil, Auto, src, data)
		if err != nil {
			t.Fatal(err)
		}
		before := fmt.Sprint(first)
		for i := range data {
			data[i] = 'X'
		}
		if after := fmt.Sprint(first); after != before {
			t.Errorf("samples changed with the payload's memory:\n%s\n%s", before, after)
		}
	}
	if d.out != nil || d.json.data != nil || d.cbor.data != nil {
		t.Error("the decoder holds on to the caller's memory")
	}
}

func TestRaw_KeepsThePayloadWhole(t *testing.T) {
	data := []byte("\x00\xffwhatever")
	got := Raw(Source{Sensor: "belt", Metric: "x", Now: now}, data)
	want := sample(touchline.MetricRaw, now, touchline.BytesValue("\x00\xffwhatever"))
	data[0] = 'X'
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDecode_AllocatesNothingForKnownNames(t *testing.T) {
	d := NewDecoder()
	src := Source{Sensor: "belt", Metric: "", Now: now}
	cbor, err := AppendSenMLCBOR(nil, voltageCurrentOf("belt"))
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]touchline.Sample, 0, 16)
	for _, data := range [][]byte{
		[]byte(`{"t":1700000000000000000,"heart_rate":142,"x":52.31,"y":31.22,"speed":5.1,"ok":true,"pos":{"z":[1,2]}}`),
		[]byte(`[{"bn":"belt/","bt":1600000000.5,"bu":"m","n":"x","v":1.25},{"n":"y","u":"s","t":0.01,"s":2}]`),
		cbor,
	} {
		allocs := testing.AllocsPerRun(100, func() {
			if _, err := d.Decode(dst, Auto, src, data); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%v allocations for %.40q", allocs, data)
		}
	}
}

func voltageCurrentOf(sensor string) (out []touchline.Sample) {
	for _, s := range voltageCurrent {
		out = append(out, from(sensor, s))
	}
	return out
}

func TestDecode_BoundsItsMemoryUnderInventedNames(t *testing.T) {
	d := NewDecoder()
	var dst []touchline.Sample
	var err error
	for i := range 3 * maxNames {
		for _, payload := range []string{`{"m%d":1}`, `[{"n":"s%[1]d/m%[1]d","u":"u%[1]d","v":1}]`} {
			dst, err = d.Decode(dst[:0], Auto, Source{Sensor: "belt", Now: now}, fmt.Appendf(nil, payload, i))
			if err != nil {
				t.Fatal(err)
			}
		}
		if n := d.names; len(n.metrics) > maxNames || len(n.units) > maxNames || len(n.senml) > maxNames {
			t.Fatalf("tables of %d, %d and %d names: at most %d are allowed", len(n.metrics), len(n.units), len(n.senml), maxNames)
		}
	}
	// what was forgotten is checked again, and bad names are never remembered
	if _, err = d.Decode(nil, Auto, Source{Sensor: "belt", Now: now}, []byte(`{"a#":1}`)); err == nil {
		t.Error("a bad name passed")
	}
	if _, err = d.Decode(nil, Auto, Source{Sensor: "belt", Now: now}, []byte(`{"a#":1}`)); err == nil {
		t.Error("a bad name passed the second time")
	}
}
