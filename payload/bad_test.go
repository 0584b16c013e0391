package payload

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"touchline"
)

// What each bad payload is answered with. The messages are what an operator
// or a programmer of a sensor reads, so they are fixed here in full.

type bad struct{ payload, want string }

func testBad(t *testing.T, format Format, src Source, tests []bad) {
	t.Helper()
	d := NewDecoder()
	for _, tt := range tests {
		got, err := d.Decode(nil, format, src, []byte(tt.payload))
		var typed *Error
		switch {
		case err == nil:
			t.Errorf("%.80q gave %+v, want the error %s", tt.payload, got, tt.want)
		case !errors.As(err, &typed):
			t.Errorf("%.80q gave a %T", tt.payload, err)
		case err.Error() != tt.want:
			t.Errorf("%.80q\n got %s\nwant %s", tt.payload, err, tt.want)
		}
	}
}

var belt = Source{Sensor: "belt", Now: now}

func TestDecode_SaysWhatIsWrongWithObjects(t *testing.T) {
	testBad(t, Object, belt, []bad{
		{``, `JSON object: the payload is empty: send a value`},
		{` `, `JSON object: byte 1: the payload ends early: want an object`},
		{`[]`, `JSON object: byte 0: want an object, have an array`},
		{`1`, `JSON object: byte 0: want an object, have a number`},
		{`{`, `JSON object: byte 1: the payload ends early: want a member name in double quotes`},
		{`{}`, `JSON object: the object has no value: give at least one member besides "t" that is not null`},
		{`{"t":1600000000000000000}`, `JSON object: the object has no value: give at least one member besides "t" that is not null`},
		{`{"a":null}`, `JSON object: the object has no value: give at least one member besides "t" that is not null`},
		{`{"a"}`, `JSON object: byte 4: want a colon after the member name, have '}'`},
		{`{"a":}`, `JSON object: "a", byte 5: want true, false, null, a number or a string in double quotes, have '}'`},
		{`{"a":1`, `JSON object: byte 6: the payload ends early: want a comma or '}'`},
		{`{"a":1,}`, `JSON object: byte 7: want a member name in double quotes, have '}'`},
		{`{"a":1 "b":2}`, `JSON object: byte 7: want a comma or '}', have a string`},
		{`{"a":1}}`, `JSON object: byte 7: want the end of the payload, which holds one value, have '}'`},
		{`{"a":1} {"a":2}`, `JSON object: byte 8: want the end of the payload, which holds one value, have an object`},
		{`{a:1}`, `JSON object: byte 1: want a member name in double quotes, have 'a'`},
		{`{'a':1}`, `JSON object: byte 1: want a member name in double quotes, have '\''`},
		{`{"a":01}`, `JSON object: "a", byte 5: a number may not begin with a zero`},
		{`{"a":1.}`, `JSON object: "a", byte 7: want a digit after the decimal point`},
		{`{"a":.5}`, `JSON object: "a", byte 5: want true, false, null, a number or a string in double quotes, have '.'`},
		{`{"a":-}`, `JSON object: "a", byte 6: want a digit, have '}'`},
		{`{"a":+1}`, `JSON object: "a", byte 5: want true, false, null, a number or a string in double quotes, have '+'`},
		{`{"a":1e}`, `JSON object: "a", byte 6: want a digit in the number's exponent`},
		{`{"a":1e400}`, `JSON object: "a", byte 5: the number does not fit a 64-bit float (at most 1.8e308)`},
		{`{"a":0x10}`, `JSON object: byte 6: want a comma or '}', have 'x'`},
		{`{"a":NaN}`, `JSON object: "a", byte 5: want true, false, null, a number or a string in double quotes, have 'N'`},
		{`{"a":nil}`, `JSON object: "a", byte 5: want true, false, null, a number or a string in double quotes`},
		{`{"a":tru}`, `JSON object: "a", byte 5: want true, false, null, a number or a string in double quotes`},
		{`{"a":"x}`, `JSON object: "a", byte 8: the payload ends inside a string`},
		{`{"a":"\x"}`, `JSON object: "a", byte 6: unknown escape: JSON has \" \\ \/ \b \f \n \r \t and \u0000`},
		{`{"a":"\u12g4"}`, `JSON object: "a", byte 6: want four hexadecimal digits after \u`},
		{`{"a":"\ud800"}`, `JSON object: "a", byte 6: a lone surrogate is no character`},
		{`{"a":"\udc00\ud800"}`, `JSON object: "a", byte 6: a lone surrogate is no character`},
		{`{"a":"\`, `JSON object: "a", byte 7: the payload ends inside a string`},
		{"{\"a\":\"\x01\"}", `JSON object: "a", byte 6: the control character 0x01 in a string must be escaped`},
		{"{\"a\":\"\xff\"}", `JSON object: "a", byte 5: the string is not valid UTF-8`},
		{"{\"a\":\"\\n\xff\"}", `JSON object: "a", byte 5: the string is not valid UTF-8`},
		{"{\"\xff\":1}", `JSON object: byte 1: the string is not valid UTF-8`},
		{"\ufeff{\"a\":1}", `JSON object: byte 0: want an object, have the byte 0xef`},
		{`{"a":{"b":[1,{"c":x}]}}`, `JSON object: "a.b.1.c", byte 18: want true, false, null, a number or a string in double quotes, have 'x'`},
		{`{"a":[1,2}`, `JSON object: "a", byte 9: want a comma or ']', have '}'`},
		{"{\"a\":\"\\n\x01\"}", `JSON object: "a", byte 8: the control character 0x01 in a string must be escaped`},
		{`{"a":"\n`, `JSON object: "a", byte 8: the payload ends inside a string`},
		{`{"a":"\ud83d\ud"}`, `JSON object: "a", byte 6: a lone surrogate is no character`},
		{`{"t":"2020`, `JSON object: "t", byte 10: the payload ends inside a string`},
		{`{"t":-}`, `JSON object: "t", byte 6: want a digit, have '}'`},
		{`{"":1}`, `JSON object: byte 4: metric name is empty`},
		{`{"a+b":1}`, `JSON object: "a+b", byte 7: metric name "a+b" has '+' at byte 1, which is not allowed there`},
		{`{"a\u0000":1}`, `JSON object: "a\x00", byte 11: metric name "a\x00" has the control character 0x00 at byte 1`},
		{`{"` + strings.Repeat("é", 65) + `":1}`, `JSON object: "éééééééééééééééééééééééééééééééé…", byte 134: metric name "éééééééééééééééééééé"… has 130 bytes: at most 128 are allowed`},
		{`{"a":` + strings.Repeat("[", 16) + "1" + strings.Repeat("]", 16) + "}", `JSON object: "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0", byte 20: objects and arrays nest deeper than 16 levels: flatten them`},
		{`{` + strings.Repeat(`"a":1,`, 1024) + `"a":1}`, `JSON object: "a", byte 6149: the object has more than 1024 values: send several`},
		{`{"t":1600000000.5,"a":1}`, `JSON object: "t", byte 5: want an integer of nanoseconds since 1970 or an RFC 3339 string in double quotes, have 1600000000.5`},
		{`{"t":1.6e18,"a":1}`, `JSON object: "t", byte 5: want an integer of nanoseconds since 1970 or an RFC 3339 string in double quotes, have 1.6e18`},
		{`{"t":99999999999999999999,"a":1}`, `JSON object: "t", byte 5: want an integer of nanoseconds since 1970 or an RFC 3339 string in double quotes, have 99999999999999999999`},
		{`{"t":-1,"a":1}`, `JSON object: "t", byte 5: time out of bounds: 1969-12-31T23:59:59Z is before 1970`},
		{`{"t":9000000000000000000,"a":1}`, `JSON object: "t", byte 5: time out of bounds: 2255-03-14T16:00:00Z is more than a century ahead (is the unit nanoseconds?)`},
		{`{"t":"1600000000","a":1}`, `JSON object: "t", byte 5: the time is not of the form 2006-01-02T15:04:05.999Z (RFC 3339)`},
		{`{"t":"1969-12-31T23:59:59Z","a":1}`, `JSON object: "t", byte 5: time out of bounds: 1969-12-31T23:59:59Z is not between 1970 and 2262`},
		{`{"t":"0001-01-01T00:00:00Z","a":1}`, `JSON object: "t", byte 5: time out of bounds: 0001-01-01T00:00:00Z is not between 1970 and 2262`},
		{`{"t":"2200-01-01T00:00:00Z","a":1}`, `JSON object: "t", byte 5: time out of bounds: 2200-01-01T00:00:00Z is more than a century ahead (is the unit nanoseconds?)`},
		{`{"t":"9999-01-01T00:00:00Z","a":1}`, `JSON object: "t", byte 5: time out of bounds: 9999-01-01T00:00:00Z is not between 1970 and 2262`},
		{`{"t":true,"a":1}`, `JSON object: "t", byte 5: want an integer of nanoseconds since 1970 or an RFC 3339 string in double quotes, have a boolean`},
		{`{"t":1,"a":1,"t":1}`, `JSON object: "t", byte 17: the time is given twice: keep one`},
	})
}

func TestDecode_SaysWhatIsWrongWithSources(t *testing.T) {
	for _, tt := range []struct {
		src Source
		bad
	}{
		{Source{Now: now}, bad{`{"a":1}`, `JSON object: nothing names the sensor: send to sensors/<sensor>, add ?sensor=<sensor>, or use SenML names of the form "sensor/metric"`}},
		{Source{Now: now}, bad{`[{"n":"a","v":1}]`, `SenML JSON: record 0, "n", byte 1: nothing names the sensor: send to sensors/<sensor>, add ?sensor=<sensor>, or use SenML names of the form "sensor/metric"`}},
		{Source{Now: now}, bad{`1`, `bare value: a bare value needs a sensor and a metric: send to sensors/<sensor>/<metric>, or send an object or SenML`}},
		{belt, bad{`1`, `bare value: a bare value needs a sensor and a metric: send to sensors/<sensor>/<metric>, or send an object or SenML`}},
		{Source{Sensor: "a/b", Now: now}, bad{`{"a":1}`, `JSON object: sensor name "a/b" has '/' at byte 1, which is not allowed there`}},
		{Source{Sensor: "belt", Metric: "a#", Now: now}, bad{`1`, `bare value: byte 0: metric name "a#" has '#' at byte 1, which is not allowed there`}},
		{Source{Sensor: "belt", Metric: "a#", Now: now}, bad{`{"b":1}`, `JSON object: "b", byte 5: metric name "a#.b" has '#' at byte 1, which is not allowed there`}},
	} {
		testBad(t, Auto, tt.src, []bad{tt.bad})
	}
}

func TestDecode_SaysWhatIsWrongWithBareValues(t *testing.T) {
	testBad(t, Bare, Source{Sensor: "belt", Metric: "hr", Now: now}, []bad{
		{``, `bare value: the payload is empty: send a value`},
		{`null`, `bare value: null is no value: send nothing instead`},
		{`on`, `bare value: byte 0: want true, false, null, a number or a string in double quotes, have 'o'`},
		{`12 bpm`, `bare value: byte 3: want the end of the payload, which holds one value, have 'b'`},
		{`{"a":1}`, `bare value: byte 0: want a number, true, false or a string in double quotes, have an object`},
		{`[1]`, `bare value: byte 0: want a number, true, false or a string in double quotes, have an array`},
		{"\xff", `bare value: byte 0: want true, false, null, a number or a string in double quotes, have the byte 0xff`},
	})
	testBad(t, Format(9), belt, []bad{{`1`, `format 9: no such format`}})
}

func TestDecode_SaysWhatIsWrongWithSenMLJSON(t *testing.T) {
	testBad(t, SenMLJSON, belt, []bad{
		{`{}`, `SenML JSON: byte 0: want an array of SenML records, have an object`},
		{`[]`, `SenML JSON: byte 1: the pack has no record`},
		{`[`, `SenML JSON: record 0, byte 1: the payload ends early: want a SenML record, which is an object`},
		{`[{"n":"a","v":1}`, `SenML JSON: byte 16: the payload ends early: want a comma or ']'`},
		{`[{"n":"a","v":1},]`, `SenML JSON: record 1, byte 17: want a SenML record, which is an object, have ']'`},
		{`[{"n":"a","v":1}]]`, `SenML JSON: byte 17: want the end of the payload, which holds one value, have ']'`},
		{`[1]`, `SenML JSON: record 0, byte 1: want a SenML record, which is an object, have a number`},
		{`[{}]`, `SenML JSON: record 0, byte 1: the record has no value: give one of "v", "vs", "vb", "vd" and "s" (plain objects go one to a payload, not in an array)`},
		{`[{"bn":"a"}]`, `SenML JSON: the pack has base fields only: give a record with a value`},
		{`[{"n":"a"}]`, `SenML JSON: record 0, byte 1: the record has no value: give one of "v", "vs", "vb", "vd" and "s" (plain objects go one to a payload, not in an array)`},
		{`[{"v":1},{"n":"a","t":1}]`, `SenML JSON: record 0, "n", byte 1: the record has no name: give "bn" or "n", or send to sensors/<sensor>/<metric>`},
		{`[{"heart_rate":142}]`, `SenML JSON: record 0, byte 1: the record has no value: give one of "v", "vs", "vb", "vd" and "s" (plain objects go one to a payload, not in an array)`},
		{`[{"v":1}]`, `SenML JSON: record 0, "n", byte 1: the record has no name: give "bn" or "n", or send to sensors/<sensor>/<metric>`},
		{`[{"n":"a","v":1,"v":2}]`, `SenML JSON: record 0, "v", byte 20: the label is there twice in one record: keep one`},
		{`[{"n":"a","v":1,"vs":"x"}]`, `SenML JSON: record 0, byte 1: the record has more than one of "v", "vs", "vb" and "vd": send a record for each`},
		{`[{"n":"a","v":"1"}]`, `SenML JSON: record 0, "v", byte 14: want a number, have a string`},
		{`[{"n":"a","v":null}]`, `SenML JSON: record 0, "v", byte 14: want a number, have null`},
		{`[{"n":"a","v":1e400}]`, `SenML JSON: record 0, "v", byte 14: the number does not fit a 64-bit float (at most 1.8e308)`},
		{`[{"n":"a","vs":1}]`, `SenML JSON: record 0, "vs", byte 15: want a string, have a number`},
		{`[{"n":"a","vb":"true"}]`, `SenML JSON: record 0, "vb", byte 15: want true or false, have a string`},
		{`[{"n":"a","vb":trUe}]`, `SenML JSON: record 0, "vb", byte 15: want true, false, null, a number or a string in double quotes`},
		{`[{"n":"a","vd":"-_8-_"}]`, `SenML JSON: record 0, "vd", byte 15: want base64url without padding (RFC 4648, section 5)`},
		{`[{"n":"a","vd":"+/8"}]`, `SenML JSON: record 0, "vd", byte 15: want base64url without padding (RFC 4648, section 5)`},
		{`[{"n":"a","vd":"-_9"}]`, `SenML JSON: record 0, "vd", byte 15: want base64url without padding (RFC 4648, section 5)`},
		{`[{"n":"a","vd":"-_8=="}]`, `SenML JSON: record 0, "vd", byte 15: want base64url without padding (RFC 4648, section 5)`},
		{`[{"n":"a","vd":"aG\nkg"}]`, `SenML JSON: record 0, "vd", byte 15: want base64url without padding (RFC 4648, section 5)`},
		{`[{"n":7,"v":1}]`, `SenML JSON: record 0, "n", byte 6: want a string, have a number`},
		{`[{"n":"a","u":7,"v":1}]`, `SenML JSON: record 0, "u", byte 14: want a string, have a number`},
		{`[{"n":"a","bver":"10","v":1}]`, `SenML JSON: record 0, "bver", byte 17: want a number, have a string`},
		{`[{"n":"a","vd":7}]`, `SenML JSON: record 0, "vd", byte 15: want a string, have a number`},
		{`[{"n":"a","v":-}]`, `SenML JSON: record 0, "v", byte 15: want a digit, have '}'`},
		{`[{"n":"a" "v":1}]`, `SenML JSON: record 0, byte 10: want a comma or '}', have a string`},
		{`[{"n":"a",v:1}]`, `SenML JSON: record 0, byte 10: want a member name in double quotes, have 'v'`},
		{`[{"n":"a","` + strings.Repeat("aé", 22) + `_":1}]`, `SenML JSON: record 0, "aéaéaéaéaéaéaéaéaéaéaéaéaéaéaéaéaéaéaéaéaéa…", byte 10: a label that ends in _ must be understood (RFC 8428, section 4.4), and this one is not: leave it out`},
		{`[{"n":"/a","v":1}]`, `SenML JSON: record 0, "n", byte 1: sensor name is empty`},
		{`[{"n":"a/","v":1}]`, `SenML JSON: record 0, "n", byte 1: metric name is empty`},
		{`[{"n":"a+b/c","v":1}]`, `SenML JSON: record 0, "n", byte 1: sensor name "a+b" has '+' at byte 1, which is not allowed there`},
		{`[{"n":"a","u":"\u0007","v":1}]`, `SenML JSON: record 0, "u", byte 22: unit "\a" has the control character 0x07 at byte 0`},
		{`[{"n":"a","t":"now","v":1}]`, `SenML JSON: record 0, "t", byte 14: want a number, have a string`},
		{`[{"n":"a","t":1e10,"v":1}]`, `SenML JSON: record 0, "t", byte 14: the time does not fit: SenML counts seconds, here up to the year 2262`},
		{`[{"n":"a","t":1700000000000,"v":1}]`, `SenML JSON: record 0, "t", byte 14: the time does not fit: SenML counts seconds, here up to the year 2262`},
		{`[{"n":"a","t":5000000000,"v":1}]`, `SenML JSON: record 0, "t", byte 1: SenML counts seconds: time out of bounds: 2128-06-11T08:53:20Z is more than a century ahead (is the unit nanoseconds?)`},
		{`[{"n":"a","t":-1700000001,"v":1}]`, `SenML JSON: record 0, "t", byte 1: SenML counts seconds: time out of bounds: 1969-12-31T23:59:59Z is before 1970`},
		{`[{"n":"a","bt":9e9,"t":9e9,"v":1}]`, `SenML JSON: record 0, "t", byte 1: the time does not fit: SenML counts seconds, here up to the year 2262`},
		{`[{"n":"a","bver":11,"v":1}]`, `SenML JSON: record 0, "bver", byte 19: version 11 of SenML is not known: send versions 1 to 10`},
		{`[{"n":"a","bver":0,"v":1}]`, `SenML JSON: record 0, "bver", byte 17: want a positive integer, have 0`},
		{`[{"n":"a","bver":5.0,"v":1}]`, `SenML JSON: record 0, "bver", byte 17: want a positive integer, have 5.0`},
		{`[{"n":"a","must_":1,"v":1}]`, `SenML JSON: record 0, "must_", byte 10: a label that ends in _ must be understood (RFC 8428, section 4.4), and this one is not: leave it out`},
		{`[{"n":"a","x":[1,}],"v":1}]`, `SenML JSON: record 0, byte 17: want true, false, null, a number or a string in double quotes, have '}'`},
		{`[{"n":"a","bv":1.7e308,"v":1.7e308}]`, `SenML JSON: record 0, "v", byte 1: base value and value together: the number does not fit a 64-bit float (at most 1.8e308)`},
		{`[{"n":"a","bs":1.7e308,"s":1.7e308}]`, `SenML JSON: record 0, "s", byte 1: base sum and sum together: the number does not fit a 64-bit float (at most 1.8e308)`},
		{`[{"n":"` + strings.Repeat("a", 126) + `","s":1}]`, `SenML JSON: record 0, "s", byte 1: the sum is kept as a metric of its own, with ".sum" behind its name: metric name "aaaaaaaaaaaaaaaaaaaa"… has 130 bytes: at most 128 are allowed`},
		{`[{"n":"a","u":"` + strings.Repeat("m", 127) + `","s":1}]`, `SenML JSON: record 0, "s", byte 1: the sum is kept with ".s" behind its unit: unit "mmmmmmmmmmmmmmmmmmmm"… has 129 bytes: at most 128 are allowed`},
		{`[{"n":"a","x":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `,"v":1}]`, `SenML JSON: record 0, byte 28: objects and arrays nest deeper than 16 levels: flatten them`},
	})
}

func TestDecode_SaysWhatIsWrongWithSenMLCBOR(t *testing.T) {
	var tests []bad
	for _, tt := range []bad{
		{`a0`, `SenML CBOR: byte 0: want an array of SenML records, have a map`},
		{`80`, `SenML CBOR: the pack has no record`},
		{`9f ff`, `SenML CBOR: the pack has no record`},
		{`81`, `SenML CBOR: byte 1: the payload ends early`},
		{`81 a2 00 61 61 02 01 00`, `SenML CBOR: this is not well-formed CBOR: cbor: 1 bytes of extraneous data starting at index 7`},
		{`9c`, `SenML CBOR: this is not well-formed CBOR: cbor: invalid additional information 28 for type array`},
		{`81 01`, `SenML CBOR: record 0, byte 1: want a SenML record, which is a map, have an integer`},
		{`81 a0`, `SenML CBOR: record 0, byte 1: the record has no value: give one of "v", "vs", "vb", "vd" and "s" (plain objects go one to a payload, not in an array)`},
		{`81 a1 21 61 61`, `SenML CBOR: the pack has base fields only: give a record with a value`},
		{`81 a1 00 61 61`, `SenML CBOR: record 0, byte 1: the record has no value: give one of "v", "vs", "vb", "vd" and "s" (plain objects go one to a payload, not in an array)`},
		{`81 a3 00 61 61 02 01 02 02`, `SenML CBOR: record 0, "v", byte 8: the label is there twice in one record: keep one`},
		{`81 a3 00 61 61 02 01 03 61 61`, `SenML CBOR: record 0, byte 1: the record has more than one of "v", "vs", "vb" and "vd": send a record for each`},
		{`81 a2 00 61 61 02 61 31`, `SenML CBOR: record 0, "v", byte 6: want a number, have a text string`},
		{`81 a2 00 61 61 02 f6`, `SenML CBOR: record 0, "v", byte 6: want a number, have null`},
		{`81 a2 00 61 61 02 f5`, `SenML CBOR: record 0, "v", byte 6: want a number, have a boolean`},
		{`81 a2 00 61 61 02 f0`, `SenML CBOR: record 0, "v", byte 6: want a number, have a simple value`},
		{`81 a2 00 61 61 02 c1 01`, `SenML CBOR: record 0, "v", byte 6: want a number, have a tag`},
		{`81 a2 00 61 61 02 c4 01`, `SenML CBOR: record 0, "v", byte 6: a decimal fraction (tag 4) is an array of two integers: exponent and mantissa`},
		{`81 a2 00 61 61 02 c4 81 01`, `SenML CBOR: record 0, "v", byte 6: a decimal fraction (tag 4) is an array of two integers: exponent and mantissa`},
		{`81 a2 00 61 61 02 c4 82 20 f9 3c 00`, `SenML CBOR: record 0, "v", byte 6: a decimal fraction (tag 4) is an array of two integers: exponent and mantissa`},
		{`81 a2 00 61 61 02 c4 83 20 01 01`, `SenML CBOR: record 0, "v", byte 6: a decimal fraction (tag 4) is an array of two integers: exponent and mantissa`},
		{`81 a2 00 61 61 02 c4 82 20 c4 82 20 01`, `SenML CBOR: record 0, "v", byte 6: a decimal fraction (tag 4) is an array of two integers: exponent and mantissa`},
		{`81 a2 00 61 61 02 c4 82 19 04 00 01`, `SenML CBOR: record 0, "v", byte 6: the number does not fit a 64-bit float (at most 1.8e308)`},
		{`81 a2 00 61 61 02 c2 58 81` + strings.Repeat(" 01", 129), `SenML CBOR: record 0, "v", byte 7: a number of 129 bytes: at most 128 are allowed`},
		{`81 a2 00 61 61 02 c2 01`, `SenML CBOR: record 0, "v", byte 7: want a byte string, have an integer`},
		{`81 a2 00 61 61 02 c4 82 20 c2 58 81` + strings.Repeat(" 01", 129), `SenML CBOR: record 0, "v", byte 10: a number of 129 bytes: at most 128 are allowed`},
		{`81 a2 00 61 61 02 c4 82 61 61 01`, `SenML CBOR: record 0, "v", byte 6: a decimal fraction (tag 4) is an array of two integers: exponent and mantissa`},
		{`81 a3 00 61 61 02 01 06 61 61`, `SenML CBOR: record 0, "t", byte 8: want a number, have a text string`},
		{`81 a3 00 61 61 02 01 06 f7`, `SenML CBOR: record 0, "t", byte 8: want a number, have undefined`},
		{`81 a2 00 61 61 03 01`, `SenML CBOR: record 0, "vs", byte 6: want a text string, have an integer`},
		{`81 a2 00 61 61 03 61 ff`, `SenML CBOR: record 0, "vs", byte 6: the string is not valid UTF-8`},
		{`81 a2 00 61 61 03 7f 61 c3 61 a9 ff`, `SenML CBOR: record 0, "vs", byte 6: the string is not valid UTF-8`},
		{`81 a2 00 61 61 04 01`, `SenML CBOR: record 0, "vb", byte 6: want a boolean, have an integer`},
		{`81 a2 00 61 61 08 63 61 61 61`, `SenML CBOR: record 0, "vd", byte 6: want a byte string, have a text string`},
		{`81 a2 00 01 02 01`, `SenML CBOR: record 0, "n", byte 3: want a text string, have an integer`},
		{`81 a3 00 61 61 02 01 20 0b`, `SenML CBOR: record 0, "bver", byte 9: version 11 of SenML is not known: send versions 1 to 10`},
		{`81 a3 00 61 61 02 01 20 00`, `SenML CBOR: record 0, "bver", byte 9: version 0 of SenML is not known: send versions 1 to 10`},
		{`81 a3 00 61 61 02 01 20 f9 45 00`, `SenML CBOR: record 0, "bver", byte 8: want a positive integer, have a float`},
		{`81 a3 00 61 61 02 01 06 f9 7e 00`, `SenML CBOR: record 0, "t", byte 8: the time does not fit: SenML counts seconds, here up to the year 2262`},
		{`81 a3 00 61 61 02 01 06 1b 00 00 00 03 00 00 00 00`, `SenML CBOR: record 0, "t", byte 8: the time does not fit: SenML counts seconds, here up to the year 2262`},
		{`81 a3 00 61 61 02 01 65 6d 75 73 74 5f 01`, `SenML CBOR: record 0, "must_", byte 7: a label that ends in _ must be understood (RFC 8428, section 4.4), and this one is not: leave it out`},
		{`81 a2 61 6e 61 61 02 01`, `SenML CBOR: record 0, "n", byte 2: in CBOR the label is the integer 0 (RFC 8428, table 4)`},
		{`81 a3 00 61 61 02 01 41 00 01`, `SenML CBOR: record 0, byte 7: want a label, an integer or a text string, have a byte string`},
		{`81 a3 00 61 61 02 01 61 ff 01`, `SenML CBOR: record 0, byte 7: the string is not valid UTF-8`},
		{`81` + strings.Repeat(" 81", 16) + ` 01`, `SenML CBOR: this is not well-formed CBOR: cbor: exceeded max nested level 16`},
	} {
		tests = append(tests, bad{string(unhex(t, tt.payload)), tt.want})
	}
	testBad(t, SenMLCBOR, belt, tests)
}

func TestDecode_TimeErrorsWrapErrTime(t *testing.T) {
	for _, payload := range []string{`{"t":-1,"a":1}`, `[{"n":"a","t":-1700000001,"v":1}]`} {
		if _, err := NewDecoder().Decode(nil, Auto, belt, []byte(payload)); !errors.Is(err, touchline.ErrTime) {
			t.Errorf("%s gave %v, want ErrTime in it", payload, err)
		}
	}
}

func TestDecode_ErrorsOfLongGarbageAreShort(t *testing.T) {
	long := strings.Repeat("é", 30_000)
	for _, payload := range []string{
		`{"` + long + `":1}`, `{"` + long + `":x}`, `{"t":` + strings.Repeat("1", 60_000) + `}`, long,
		`[{"` + long + `_":1}]`, `[{"n":"` + long + `","v":1}]`, `[{"bver":` + strings.Repeat("1", 60_000) + `}]`,
		fmt.Sprintf("\x81\xa1\x79%c%c%s\x01", 60_001>>8, 60_001&0xff, long+"_"),
	} {
		_, err := NewDecoder().Decode(nil, Auto, Source{Sensor: "belt", Metric: "m", Now: now}, []byte(payload))
		if err == nil || len(err.Error()) > 400 {
			t.Errorf("%.40q gave an error of %d bytes", payload, len(fmt.Sprint(err)))
		}
	}
}
