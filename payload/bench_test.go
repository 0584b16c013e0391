package payload

import (
	"testing"

	"touchline"
)

const benchNow = 1_700_000_000_500_000_000

func benchmarkDecode(b *testing.B, format Format, src Source, payload string, samples int) {
	d := NewDecoder()
	data := []byte(payload)
	var dst []touchline.Sample
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = d.Decode(dst[:0], format, src, data); err != nil {
			b.Fatal(err)
		}
	}
	if len(dst) != samples {
		b.Fatalf("%d samples, want %d", len(dst), samples)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*samples), "ns/sample")
}

func BenchmarkDecode_Object(b *testing.B) {
	benchmarkDecode(b, Auto, Source{Sensor: "player-07", Now: benchNow},
		`{"t":1700000000000000000,"heart_rate":142,"x":52.31,"y":31.22,"speed":5.1}`, 4)
}

func BenchmarkDecode_ObjectLongFloats(b *testing.B) {
	benchmarkDecode(b, Auto, Source{Sensor: "player-07", Now: benchNow},
		`{"t":1700000000000000000,"x":52.318273645182736,"y":31.223847561928374}`, 2)
}

func BenchmarkDecode_Bare(b *testing.B) {
	benchmarkDecode(b, Auto, Source{Sensor: "player-07", Metric: "heart_rate", Now: benchNow}, `142`, 1)
}

var benchSamples = func() (out []touchline.Sample) {
	for i := range int64(20) {
		t := int64(1_700_000_000_000_000_000) + i*10_000_000
		out = append(out,
			touchline.Sample{Sensor: "imu-3", Metric: "acc_x", Unit: "m/s2", Time: t, Value: touchline.NumberValue(float64(i) * 0.125)},
			touchline.Sample{Sensor: "imu-3", Metric: "acc_y", Unit: "m/s2", Time: t, Value: touchline.NumberValue(9.81 - float64(i)/100)})
	}
	return out
}()

func BenchmarkDecode_SenMLJSON(b *testing.B) {
	data, err := AppendSenMLJSON(nil, benchSamples)
	if err != nil {
		b.Fatal(err)
	}
	benchmarkDecode(b, Auto, Source{Now: benchNow}, string(data), len(benchSamples))
}

func BenchmarkDecode_SenMLCBOR(b *testing.B) {
	data, err := AppendSenMLCBOR(nil, benchSamples)
	if err != nil {
		b.Fatal(err)
	}
	benchmarkDecode(b, Auto, Source{Now: benchNow}, string(data), len(benchSamples))
}

func benchmarkEncode(b *testing.B, encode func([]byte, []touchline.Sample) ([]byte, error)) {
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = encode(dst[:0], benchSamples); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(benchSamples)), "ns/sample")
	b.ReportMetric(float64(len(dst))/float64(len(benchSamples)), "B/sample")
}

func BenchmarkAppendSenMLJSON(b *testing.B) { benchmarkEncode(b, AppendSenMLJSON) }
func BenchmarkAppendSenMLCBOR(b *testing.B) { benchmarkEncode(b, AppendSenMLCBOR) }
