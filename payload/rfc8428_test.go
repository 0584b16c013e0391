package payload

import (
	"encoding/hex"
	"strings"
	"testing"

	"touchline"
)

// The worked examples of RFC 8428, sections 5.1.1 to 5.1.8 and 6, as they are
// printed there, and the samples they resolve to. Their names have no slash,
// or are IPv6 addresses before one, so the sensor comes from the source.

const rfcNow = 1_700_000_000_123_456_789

var rfcSource = Source{Sensor: "gw", Now: rfcNow}

func num(metric, unit string, t int64, v float64) touchline.Sample {
	return touchline.Sample{Sensor: "gw", Metric: metric, Unit: unit, Time: t, Value: touchline.NumberValue(v), Stamped: near(t, rfcNow)}
}

func from(sensor string, s touchline.Sample) touchline.Sample {
	s.Sensor = sensor
	return s
}

const (
	ow     = "urn:dev:ow:10e2073a01080063"
	humidT = 1_320_067_464_000_000_000
	second = 1_000_000_000
)

// voltageCurrent is the second example of section 5.1.2, and that of section 6.
var voltageCurrent = []touchline.Sample{
	num("urn:dev:ow:10e2073a0108006:voltage", "V", 1_276_020_076_001_000_000, 120.1),
	num("urn:dev:ow:10e2073a0108006:current", "A", 1_276_020_071_001_000_000, 1.2),
	num("urn:dev:ow:10e2073a0108006:current", "A", 1_276_020_072_001_000_000, 1.3),
	num("urn:dev:ow:10e2073a0108006:current", "A", 1_276_020_073_001_000_000, 1.4),
	num("urn:dev:ow:10e2073a0108006:current", "A", 1_276_020_074_001_000_000, 1.5),
	num("urn:dev:ow:10e2073a0108006:current", "A", 1_276_020_075_001_000_000, 1.6),
	num("urn:dev:ow:10e2073a0108006:current", "A", 1_276_020_076_001_000_000, 1.7),
}

// mobileHumidity is sections 5.1.3 and, resolved, 5.1.4.
var mobileHumidity = []touchline.Sample{
	num(ow, "%RH", humidT, 20),
	num(ow, "lon", humidT, 24.30621),
	num(ow, "lat", humidT, 60.07965),
	num(ow, "%RH", humidT+60*second, 20.3),
	num(ow, "lon", humidT+60*second, 24.30622),
	num(ow, "lat", humidT+60*second, 60.07965),
	num(ow, "%RH", humidT+120*second, 20.7),
	num(ow, "lon", humidT+120*second, 24.30623),
	num(ow, "lat", humidT+120*second, 60.07966),
	num(ow, "%EL", humidT+150*second, 98),
	num(ow, "%RH", humidT+180*second, 21.2),
	num(ow, "lon", humidT+180*second, 24.30628),
	num(ow, "lat", humidT+180*second, 60.07967),
}

var rfcExamples = []struct {
	name, payload string
	want          []touchline.Sample
}{
	{"5.1.1 single data point", `[
     {"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}
   ]`, []touchline.Sample{num(ow, "Cel", rfcNow, 23.1)}},

	{"5.1.2 multiple data points, now", `[
     {"bn":"urn:dev:ow:10e2073a01080063:","n":"voltage","u":"V","v":120.1},
     {"n":"current","u":"A","v":1.2}
   ]`, []touchline.Sample{num(ow+":voltage", "V", rfcNow, 120.1), num(ow+":current", "A", rfcNow, 1.2)}},

	{"5.1.2 multiple data points, base time", `[
     {"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,
      "bu":"A","bver":5,
      "n":"voltage","u":"V","v":120.1},
     {"n":"current","t":-5,"v":1.2},
     {"n":"current","t":-4,"v":1.3},
     {"n":"current","t":-3,"v":1.4},
     {"n":"current","t":-2,"v":1.5},
     {"n":"current","t":-1,"v":1.6},
     {"n":"current","v":1.7}
   ]`, voltageCurrent},

	{"5.1.2 stream", `[
     {"bn":"urn:dev:ow:10e2073a01080063","bt":1.320067464e+09,
      "bu":"%RH","v":21.2},
     {"t":10,"v":21.3},
     {"t":20,"v":21.4},
     {"t":30,"v":21.4},
     {"t":40,"v":21.5},
     {"t":50,"v":21.5},
     {"t":60,"v":21.5},
     {"t":70,"v":21.6},
     {"t":80,"v":21.7}
   ]`, []touchline.Sample{
		num(ow, "%RH", humidT, 21.2),
		num(ow, "%RH", humidT+10*second, 21.3),
		num(ow, "%RH", humidT+20*second, 21.4),
		num(ow, "%RH", humidT+30*second, 21.4),
		num(ow, "%RH", humidT+40*second, 21.5),
		num(ow, "%RH", humidT+50*second, 21.5),
		num(ow, "%RH", humidT+60*second, 21.5),
		num(ow, "%RH", humidT+70*second, 21.6),
		num(ow, "%RH", humidT+80*second, 21.7),
	}},

	{"5.1.3 multiple measurements", `[
     {"bn":"urn:dev:ow:10e2073a01080063","bt":1.320067464e+09,
      "bu":"%RH","v":20},
     {"u":"lon","v":24.30621},
     {"u":"lat","v":60.07965},
     {"t":60,"v":20.3},
     {"u":"lon","t":60,"v":24.30622},
     {"u":"lat","t":60,"v":60.07965},
     {"t":120,"v":20.7},
     {"u":"lon","t":120,"v":24.30623},
     {"u":"lat","t":120,"v":60.07966},
     {"u":"%EL","t":150,"v":98},
     {"t":180,"v":21.2},
     {"u":"lon","t":180,"v":24.30628},
     {"u":"lat","t":180,"v":60.07967}
   ]`, mobileHumidity},

	{"5.1.4 resolved data", `[
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067464e+09,
      "v":20},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067464e+09,
      "v":24.30621},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067464e+09,
      "v":60.07965},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067524e+09,
      "v":20.3},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067524e+09,
      "v":24.30622},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067524e+09,
      "v":60.07965},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067584e+09,
      "v":20.7},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067584e+09,
      "v":24.30623},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067584e+09,
      "v":60.07966},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%EL","t":1.320067614e+09,
      "v":98},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067644e+09,
      "v":21.2},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067644e+09,
      "v":24.30628},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067644e+09,
      "v":60.07967}
   ]`, mobileHumidity},

	{"5.1.5 multiple data types", `[
     {"bn":"urn:dev:ow:10e2073a01080063:","n":"temp","u":"Cel","v":23.1},
     {"n":"label","vs":"Machine Room"},
     {"n":"open","vb":false},
     {"n":"nfc-reader","vd":"aGkgCg"}
   ]`, []touchline.Sample{
		num(ow+":temp", "Cel", rfcNow, 23.1),
		{Sensor: "gw", Metric: ow + ":label", Time: rfcNow, Stamped: true, Value: touchline.TextValue("Machine Room")},
		{Sensor: "gw", Metric: ow + ":open", Time: rfcNow, Stamped: true, Value: touchline.BoolValue(false)},
		{Sensor: "gw", Metric: ow + ":nfc-reader", Time: rfcNow, Stamped: true, Value: touchline.BytesValue("hi \n")},
	}},

	{"5.1.6 collection of resources", `[
     {"bn":"2001:db8::2/","bt":1.320078429e+09,
      "n":"temperature","u":"Cel","v":25.2},
     {"n":"humidity","u":"%RH","v":30},
     {"bn":"2001:db8::1/","n":"temperature","u":"Cel","v":12.3},
     {"n":"humidity","u":"%RH","v":67}
   ]`, []touchline.Sample{
		from("2001:db8::2", num("temperature", "Cel", 1_320_078_429*second, 25.2)),
		from("2001:db8::2", num("humidity", "%RH", 1_320_078_429*second, 30)),
		from("2001:db8::1", num("temperature", "Cel", 1_320_078_429*second, 12.3)),
		from("2001:db8::1", num("humidity", "%RH", 1_320_078_429*second, 67)),
	}},

	{"5.1.7 setting an actuator, thermostat", `[
     {"bn":"urn:dev:ow:10e2073a01080063:"},
     {"n":"temp","u":"Cel","v":23.1},
     {"n":"heat","u":"/","v":1},
     {"n":"fan","u":"/","v":0}
   ]`, []touchline.Sample{
		num(ow+":temp", "Cel", rfcNow, 23.1),
		num(ow+":heat", "/", rfcNow, 1),
		num(ow+":fan", "/", rfcNow, 0),
	}},

	{"5.1.8 setting an actuator, lights on", `[
     {"bt":1.320078429e+09,"bu":"/","n":"2001:db8::3","v":1},
     {"n":"2001:db8::4","v":1}
   ]`, []touchline.Sample{
		num("2001:db8::3", "/", 1_320_078_429*second, 1),
		num("2001:db8::4", "/", 1_320_078_429*second, 1),
	}},

	{"5.1.8 setting an actuator, lights off", `[
     {"bt":1.320078429e+09,"bu":"/","n":"2001:db8::3","v":0.5},
     {"n":"2001:db8::4","v":0.5},
     {"n":"2001:db8::3","t":0.1,"v":0},
     {"n":"2001:db8::4","t":0.1,"v":0}
   ]`, []touchline.Sample{
		num("2001:db8::3", "/", 1_320_078_429*second, 0.5),
		num("2001:db8::4", "/", 1_320_078_429*second, 0.5),
		num("2001:db8::3", "/", 1_320_078_429_100_000_000, 0),
		num("2001:db8::4", "/", 1_320_078_429_100_000_000, 0),
	}},
}

func TestDecode_ReadsTheJSONExamplesOfRFC8428(t *testing.T) {
	for _, tt := range rfcExamples {
		t.Run(tt.name, func(t *testing.T) {
			for _, format := range []Format{Auto, SenMLJSON} {
				got, err := NewDecoder().Decode(nil, format, rfcSource, []byte(tt.payload))
				if err != nil {
					t.Fatal(err)
				}
				equal(t, got, tt.want)
			}
		})
	}
}

// rfcCBOR is the dump of section 6.
const rfcCBOR = `
	87 a7 21 78 1b 75 72 6e 3a 64 65 76 3a 6f 77 3a
	31 30 65 32 30 37 33 61 30 31 30 38 30 30 36 3a
	22 fb 41 d3 03 a1 5b 00 10 62 23 61 41 20 05 00
	67 76 6f 6c 74 61 67 65 01 61 56 02 fb 40 5e 06
	66 66 66 66 66 a3 00 67 63 75 72 72 65 6e 74 06
	24 02 fb 3f f3 33 33 33 33 33 33 a3 00 67 63 75
	72 72 65 6e 74 06 23 02 fb 3f f4 cc cc cc cc cc
	cd a3 00 67 63 75 72 72 65 6e 74 06 22 02 fb 3f
	f6 66 66 66 66 66 66 a3 00 67 63 75 72 72 65 6e
	74 06 21 02 f9 3e 00 a3 00 67 63 75 72 72 65 6e
	74 06 20 02 fb 3f f9 99 99 99 99 99 9a a3 00 67
	63 75 72 72 65 6e 74 06 00 02 fb 3f fb 33 33 33
	33 33 33`

func TestDecode_ReadsTheCBORExampleOfRFC8428(t *testing.T) {
	data := unhex(t, rfcCBOR)
	for _, format := range []Format{Auto, SenMLCBOR} {
		got, err := NewDecoder().Decode(nil, format, rfcSource, data)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, voltageCurrent)
	}
}

func unhex(t testing.TB, dump string) []byte {
	t.Helper()
	data, err := hex.DecodeString(strings.Join(strings.Fields(dump), ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func equal(t testing.TB, got, want []touchline.Sample) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Errorf("sample %d is missing: %+v", i, want[i])
		case i >= len(want):
			t.Errorf("sample %d is too many: %+v", i, got[i])
		case got[i] != want[i]:
			t.Errorf("sample %d:\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
}
