package merge

import (
	"fmt"
	"math"
	"testing"

	"touchline"
)

func namedSamples(sensors, metrics int) []touchline.Sample {
	var samples []touchline.Sample
	for s := range sensors {
		for m := range metrics {
			samples = append(samples, touchline.Sample{Sensor: fmt.Sprintf("sensor-%d", s), Metric: fmt.Sprintf("metric-%d", m)})
		}
	}
	return samples
}

func TestNameFilter_HasEveryNameOfItsBlock(t *testing.T) {
	for _, sensors := range []int{1, 2, 30, 200, 600, 1000, 1020, 5000} {
		samples := namedSamples(sensors, 5)
		f := NewNameFilter(samples)
		if len(f) > maxFilterBytes {
			t.Fatalf("%d sensors: the filter has %d bytes, want at most %d", sensors, len(f), maxFilterBytes)
		}
		for _, s := range samples {
			if !f.mayHave(sensorHash(s.Sensor)) || !f.mayHave(metricHash(s.Metric)) {
				t.Fatalf("%d sensors: the filter hides %s %s", sensors, s.Sensor, s.Metric)
			}
		}
	}
}

func TestNameFilter_FalsePositives(t *testing.T) {
	for _, c := range []struct {
		sensors int
		most    float64 // share of other names that pass
	}{{1, 0.05}, {10, 0.03}, {100, 0.02}, {195, 0.02}, {600, 0.3}} {
		f := NewNameFilter(namedSamples(c.sensors, 5))
		passed := 0
		const others = 20_000
		for i := range others {
			if f.mayHave(sensorHash(fmt.Sprintf("other-%d", i))) {
				passed++
			}
		}
		share := float64(passed) / others
		t.Logf("%d names in %d bytes: %.2f %% of other names pass", c.sensors+5, len(f), 100*share)
		if share > c.most {
			t.Errorf("%d names: %.3f of other names pass, want at most %.3f", c.sensors+5, share, c.most)
		}
	}
}

// The hash is part of the file format.
func TestNameFilter_HashStays(t *testing.T) {
	if got := sensorHash("player-07"); got != 0xf8f2b6b4c7e7a4b9 {
		t.Errorf("sensorHash = %#x", got)
	}
	if got := metricHash("player-07"); got != 0x17e1e5d8d138edaa {
		t.Errorf("metricHash = %#x", got)
	}
}

func TestSpan_ClassBoundsIt(t *testing.T) {
	for _, c := range []struct {
		minTime, maxTime int64
		class            int
	}{
		{5, 5, 0}, {5, 6, 1}, {0, 15, 1}, {0, 16, 2}, {-8, 7, 1}, {0, 1e9, 8},
		{0, math.MaxInt64, 16}, {math.MinInt64, math.MaxInt64, 16}, {math.MinInt64, math.MinInt64, 0}, {0, 1<<60 - 1, 15}, {0, 1 << 60, 16},
	} {
		if got := (Span{c.minTime, c.maxTime}).Class(); got != c.class {
			t.Errorf("Span{%d, %d}.Class() = %d, want %d", c.minTime, c.maxTime, got, c.class)
		}
	}
}
