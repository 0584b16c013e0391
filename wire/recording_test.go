package wire

import (
	"compress/gzip"
	"encoding/csv"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"touchline"
)

var recordings = []string{"endurance", "gym_imu", "pitch_positions"}

var loaded sync.Map // name -> []touchline.Sample

// recording returns the samples of a whole recording, its names interned, as
// the decoders of payloads intern them.
func recording(t testing.TB, name string) []touchline.Sample {
	t.Helper()
	if have, ok := loaded.Load(name); ok {
		return slices.Clone(have.([]touchline.Sample))
	}
	f, err := os.Open("../testdata/" + name + ".csv.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(z).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var out []touchline.Sample
	names := map[string]string{}
	intern := func(s string) string {
		if _, ok := names[s]; !ok {
			names[s] = s
		}
		return names[s]
	}
	for _, row := range rows[1:] {
		ns, err := strconv.ParseInt(row[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		v, err := strconv.ParseFloat(row[4], 64)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, touchline.Sample{Sensor: intern(row[1]), Metric: intern(row[2]), Unit: intern(row[3]), Time: ns, Value: touchline.NumberValue(v)})
	}
	loaded.Store(name, out)
	return slices.Clone(out)
}

// matchRound is what one commit of a stadium's gateway gathers: 300 players
// with 4 metrics each, 3 messages of each, interleaved as they come in, with
// times that jitter.
func matchRound() []touchline.Sample {
	metrics := []struct {
		name, unit string
		digits     int
		base, step float64
	}{{"heart_rate", "beat/min", 0, 140, 3}, {"x", "m", 2, 50, 0.4}, {"y", "m", 2, 30, 0.4}, {"speed", "m/s", 2, 4, 0.3}}
	random := newRandom(1)
	state := make([][4]float64, 300)
	for i := range state {
		for j, m := range metrics {
			state[i][j] = m.base * (0.5 + random.Float64())
		}
	}
	var out []touchline.Sample
	const start = 1767225600_000_000_000
	for message := range 3 {
		for _, player := range random.Perm(300) {
			sensor := fmt.Sprintf("player-%03d", player)
			at := start + int64(message)*100e6 + int64(player)*333e3 + random.Int63n(2000)*1e3
			for j, m := range metrics {
				state[player][j] += m.step * random.NormFloat64()
				v, _ := strconv.ParseFloat(strconv.FormatFloat(state[player][j], 'f', m.digits, 64), 64)
				out = append(out, touchline.Sample{Sensor: sensor, Metric: m.name, Unit: m.unit, Time: at, Value: touchline.NumberValue(v)})
			}
		}
	}
	return out
}
