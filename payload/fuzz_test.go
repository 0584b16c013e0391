package payload

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"touchline"
)

// checkDecoded holds what every decoded sample promises, and that each
// encoder's output decodes to the same samples.
func checkDecoded(t *testing.T, samples []touchline.Sample) {
	if len(samples) == 0 {
		t.Fatal("no sample and no error")
	}
	fitsSenML, finite := true, true
	for _, s := range samples {
		for _, err := range []error{
			touchline.CheckSensor(s.Sensor), touchline.CheckMetric(s.Metric), touchline.CheckUnit(s.Unit),
			touchline.CheckTime(s.Time, time.Unix(0, now)),
		} {
			if err != nil {
				t.Fatalf("%+v: %v", s, err)
			}
		}
		if s.Value.Kind() == touchline.Text && !utf8.ValidString(s.Value.Text()) {
			t.Fatalf("%+v is not UTF-8", s)
		}
		f := s.Value.Float()
		finite = finite && !math.IsNaN(f) && !math.IsInf(f, 0)
		fitsSenML = fitsSenML && s.Time >= absoluteTime
	}
	samples = slices.Clone(samples)
	for i := range samples {
		samples[i].Stamped = false // what is written has its time
	}
	for _, e := range encoders {
		data, err := e.append(nil, samples)
		if wantErr := !fitsSenML || e.format == SenMLJSON && !finite; wantErr != (err != nil) {
			t.Fatalf("%v: %v", e.format, err)
		}
		if err != nil {
			continue
		}
		if e.format == SenMLJSON && !json.Valid(data) {
			t.Fatalf("no JSON: %s", data)
		}
		again, err := NewDecoder().Decode(nil, Auto, Source{Now: now}, data)
		if err != nil {
			t.Fatalf("%v: %v in %q", e.format, err, data)
		}
		equal(t, again, samples)
	}
}

// checkPayload decodes data with a fresh decoder and with one that is full of
// other names, which must agree.
func checkPayload(t *testing.T, used *Decoder, format Format, src Source, data []byte) {
	before := bytes.Clone(data)
	samples, err := NewDecoder().Decode(nil, format, src, data)
	again, errAgain := used.Decode(nil, format, src, data)
	if !bytes.Equal(data, before) {
		t.Fatal("the payload was written to")
	}
	if (err == nil) != (errAgain == nil) || err != nil && err.Error() != errAgain.Error() {
		t.Fatalf("a fresh decoder says %v, a used one %v", err, errAgain)
	}
	equal(t, again, samples)
	if err != nil {
		if samples != nil {
			t.Fatal("samples and an error")
		}
		if len(err.Error()) > 500 {
			t.Fatalf("an error of %d bytes", len(err.Error()))
		}
		return
	}
	checkDecoded(t, samples)
}

func FuzzDecode(f *testing.F) {
	for _, tt := range rfcExamples {
		f.Add([]byte(tt.payload), "belt", "")
	}
	f.Add(unhex(f, rfcCBOR), "", "")
	f.Add([]byte(`{"t":1700000000000000000,"heart_rate":142,"x":52.31,"pos":{"y":[1,"\ud83d\ude00"]}}`), "belt", "imu")
	f.Add([]byte(`-1.5e-3`), "belt", "x/y")
	f.Add([]byte(`"text"`), "belt", "x")
	for _, e := range encoders {
		data, err := e.append(nil, hardSamples)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "belt", "m")
	}
	used := NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte, sensor, metric string) {
		src := Source{Sensor: sensor, Metric: metric, Now: now}
		for format := Auto; format <= Bare; format++ {
			checkPayload(t, used, format, src, data)
		}
	})
}

func FuzzDecodeSenMLJSON(f *testing.F) {
	for _, tt := range rfcExamples {
		f.Add([]byte(tt.payload))
	}
	f.Add([]byte(`[{"bn":"a/","bv":1,"bs":-2.5e3,"bu":"m","bver":10,"n":"b","s":1,"vs":"\u00e9","t":-0.5,"ut":3,"l":[{}]},{"vd":"aGkgCg"},{"vb":true}]`))
	used := NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		checkPayload(t, used, SenMLJSON, belt, data)
		if _, err := used.Decode(nil, SenMLJSON, belt, data); err == nil && !json.Valid(data) {
			t.Fatal("took what encoding/json refuses")
		}
	})
}

func FuzzDecodeSenMLCBOR(f *testing.F) {
	f.Add(unhex(f, rfcCBOR))
	f.Add(unhex(f, "9f bf 00 7f 61 61 61 62 ff 02 c4 82 20 c2 49 01 00 00 00 00 00 00 00 00 ff a2 00 61 63 08 5f 41 01 41 02 ff ff"))
	f.Add(unhex(f, "82 a6 00 61 61 02 f9 7c 01 09 82 01 a1 01 02 38 20 5f 41 01 ff 61 7a c1 7f 61 61 ff 20 0a a3 22 fb 41 d7 d7 84 00 20 00 00 00 00 05 05"))
	data, err := AppendSenMLCBOR(nil, hardSamples)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	used := NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte) { checkPayload(t, used, SenMLCBOR, belt, data) })
}

// A leaf is a scalar of a JSON document and where it stands.
type leaf struct {
	path  string
	value touchline.Value
}

// reference reads an object through encoding/json, and how deep it nests. It
// returns false where a number fits no float64.
func reference(data []byte) (leaves []leaf, depth int, fits bool) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	fits = true
	var read func(path string, level int)
	read = func(path string, level int) {
		token, err := dec.Token()
		if err != nil {
			panic(err)
		}
		join := func(name string) string {
			if level == 0 {
				return name
			}
			return path + "." + name
		}
		switch v := token.(type) {
		case json.Delim:
			depth = max(depth, level+1)
			for i := 0; dec.More(); i++ {
				name := strconv.Itoa(i)
				if v == '{' {
					key, err := dec.Token()
					if err != nil {
						panic(err)
					}
					name = key.(string)
				}
				read(join(name), level+1)
			}
			if _, err := dec.Token(); err != nil {
				panic(err)
			}
		case string:
			leaves = append(leaves, leaf{path, touchline.TextValue(v)})
		case bool:
			leaves = append(leaves, leaf{path, touchline.BoolValue(v)})
		case json.Number:
			n, err := strconv.ParseFloat(string(v), 64)
			fits = fits && err == nil
			leaves = append(leaves, leaf{path, touchline.NumberValue(n)})
		}
	}
	read("", 0)
	if _, err := dec.Token(); err != io.EOF {
		panic("more than one value")
	}
	return leaves, depth, fits
}

// FuzzScanner holds the scanner against encoding/json: it takes the same
// documents, less those that are not UTF-8, have lone surrogates or nest too
// deep, and reads the same names and values from them.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{
		`{"t2":1700000000000000000,"heart_rate":142,"x":52.31,"y":-31.22e-2,"speed":5.1}`,
		`{"a":{"b":[1,2,{"c":"\ud83d\ude00 \ud800 \u0000 \" \\ \/ \b\f\n\r\t"}],"":true},"d":null}`,
		`[]`, `{}`, `[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]`, ` { "a" : [ ] , "a" : { } } `,
		`0`, `-0`, `01`, `1.`, `.1`, `1e`, `1e+5`, `1E-5`, `-`, `--1`, `1e400`, `123456789012345678901234567890.123456789012345678901234567890e-20`,
		`0.1e1`, `9007199254740993`, `179769313486231580793e289`, `2.2250738585072011e-308`, `1e23`, `8.442911973260991817129e-309`,
		`"\u12"`, `"\x"`, "\"\x01\"", "\"\xff\"", `"`, `tru`, `nul`, `falsey`, "\ufeff1", `{"a":1,}`, `[1,]`, `{"a"}`, `{1:2}`, `1 2`, ``, ` `,
		"{\"\xe2\x82\":1}", `{"a":"é日本"}`, "\x00", "[1\x00]", "{\"a\":1\v}", "{\"a\":1\u00a0}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := scanner{data: data}
		took := s.skip(0) && s.end()
		if took != (s.err == nil) {
			t.Fatalf("took is %v, error %v", took, s.err)
		}
		if !json.Valid(data) {
			if took {
				t.Fatalf("took what encoding/json refuses")
			}
			return
		}
		leaves, depth, fits := reference(data)
		clean := utf8.Valid(data) && depth <= maxDepth
		surrogate := bytes.Contains(bytes.ToLower(data), []byte(`\ud`))
		if clean && !surrogate && !took {
			t.Fatalf("refused what encoding/json takes: %v", s.err)
		}
		if !clean && took {
			t.Fatalf("took invalid UTF-8 or depth %d", depth)
		}
		if took {
			compareObject(t, data, leaves, fits)
		}
	})
}

// compareObject compares Decode with what encoding/json read, where names,
// time and number of values let it.
func compareObject(t *testing.T, data []byte, leaves []leaf, fits bool) {
	if len(leaves) == 0 || len(leaves) > maxMembers || !fits || !strings.HasPrefix(strings.TrimLeft(string(data), " \t\r\n"), "{") {
		return
	}
	want := make([]touchline.Sample, len(leaves))
	for i, l := range leaves {
		if l.path == "t" || touchline.CheckMetric(l.path) != nil {
			return
		}
		want[i] = sample(l.path, now, l.value)
	}
	var outer map[string]any
	if json.Unmarshal(data, &outer); outer["t"] != nil {
		return // an object or array as time, with leaves below it
	}
	got, err := NewDecoder().Decode(nil, Object, belt, data)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, want)
}

func FuzzParseSeconds(f *testing.F) {
	for _, seed := range []string{"0", "-0.5e-9", "1.276020076001e+09", "9223372036.8547758075", "1700000000.123456789", "0.0000000005", "1e-400", "00000e9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := scanner{data: []byte(text)}
		if !s.number() || s.pos != len(text) {
			return
		}
		if i := strings.IndexAny(text, "eE"); i >= 0 && len(text)-i > 6 {
			return // big.Rat would compute it in full
		}
		got, ok := parseSeconds([]byte(text))
		want, fits := exactNanoseconds(text)
		if ok != fits || ok && got != want {
			t.Fatalf("parseSeconds(%s) = %d, %v; want %d, %v", text, got, ok, want, fits)
		}
		if got, ok := s.seconds(); ok != fits || ok && got != want {
			t.Fatalf("seconds of %s = %d, %v; want %d, %v", text, got, ok, want, fits)
		}
	})
}
