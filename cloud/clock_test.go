package cloud_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// From the socket to the query: stamps of a clock that was not set are said to
// be that, and right as soon as the gateway knows better.
func TestUplink_ClockCorrectsWhatWasStamped(t *testing.T) {
	n := start(t, options(), openSQLite(t, t.TempDir(), "arena"))
	g, _ := n.join("arena")
	samples := readings(2, time.Date(2026, 5, 30, 20, 45, 0, 0, time.UTC).UnixNano())
	samples = samples[:2:2]
	for i := range samples {
		samples[i].Metric = "hr"
	}
	samples[1].Time, samples[1].Stamped = 12e9, true
	unset := touchline.Clock{Boot: touchline.Boot{7}, Offset: 2e9}
	encoded, err := wire.NewEncoder().EncodeWith(nil, samples, wire.Attributes{Clock: &wire.BlockClock{Clock: unset}})
	if err != nil {
		t.Fatal(err)
	}
	b := sealed(wire.Block{Epoch: touchline.NewEpoch(), First: 1, Count: 2, Data: encoded.Data})
	g.send(b)
	g.stored(b)
	rows := func(query string) string {
		_, _, body := n.get("/v1/samples" + query)
		_, body, _ = strings.Cut(body, "\n")
		return body
	}
	if got := rows(""); !strings.HasPrefix(got, "12000000000,arena,") || strings.Count(got, ",unset\n") != 2 {
		t.Errorf("before the clock was known:\n%s", got)
	}
	right := touchline.Clock{Boot: unset.Boot, State: touchline.ClockSynchronised, Offset: time.Date(2026, 5, 30, 20, 44, 51, 0, time.UTC).UnixNano()}
	for range 2 {
		g.say(wire.NewClock(right))
		if ack := next[*wire.Ack](g); len(ack.Clock) != 1 || ack.Clock[0] != (wire.ClockOffset{Boot: right.Boot, Offset: right.Offset}) {
			t.Errorf("ack is %+v", ack)
		}
	}
	want := "1780173900000000000,"
	if got := rows("?from=2026-05-30T20:45:01Z&to=2026-05-30T20:45:02Z"); strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, ",corrected\n") {
		t.Errorf("at its corrected time:\n%s", got)
	}
	if got := rows(""); !strings.HasPrefix(got, want) || strings.Count(got, ",unset\n") != 1 {
		t.Errorf("when the clock was known:\n%s", got)
	}
	if _, _, body := n.get("/v1/samples?format=json"); !strings.Contains(body, `"clock":"unset"}`) || !strings.Contains(body, `"clock":"corrected"}`) {
		t.Errorf("JSON is %s", body)
	}
	if _, _, body := n.get("/v1/samples?format=senml"); !strings.Contains(body, `"clock":"corrected"}`) {
		t.Errorf("SenML is %s", body)
	}
	g.text(`{"type":"clock","boot":"07000000000000000000000000000000","offset_ns":5,"state":"unset"}`)
	g.closed(wire.CloseProtocol)
}

func TestCorrection_StaysWithin64Bits(t *testing.T) {
	edges := []int64{math.MinInt64, math.MinInt64 + 1, -1, 0, 1, math.MaxInt64 - 1, math.MaxInt64}
	for _, known := range edges {
		for _, by := range edges {
			c := cloud.Correct(touchline.Clock{Offset: by}, touchline.Clock{State: touchline.ClockSynchronised, Offset: known})
			if !c.Vouched || (c.Shift > 0) != (known > by) || (c.Shift < 0) != (known < by) {
				t.Errorf("%d corrects %d by %d", known, by, c.Shift)
			}
			before := c.Time(math.MinInt64)
			for _, at := range edges {
				got := c.Time(at)
				if got < before || (got > at) != (c.Shift > 0 && at < math.MaxInt64) || (got < at) != (c.Shift < 0 && at > math.MinInt64) {
					t.Errorf("%d shifted by %d is %d", at, c.Shift, got)
				}
				before = got
			}
		}
	}
}
