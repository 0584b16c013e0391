package cloud

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"touchline"
)

// drawRuns draws what a block has of some series. Times repeat and go back.
func drawRuns(t *rapid.T, epochs []touchline.Epoch, seq *uint64) []run {
	var runs []run
	epoch := epochs[rapid.IntRange(0, len(epochs)-1).Draw(t, "epoch")]
	for _, sensor := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3, rapid.ID).Draw(t, "sensors") {
		key := seriesKey{"arena", sensor, "m"}
		var rows []row
		for range rapid.IntRange(1, 12).Draw(t, "count") {
			*seq++
			at := int64(rapid.IntRange(0, 40).Draw(t, "time"))
			text := strings.Repeat("x", rapid.SampledFrom([]int{0, 0, 0, 500}).Draw(t, "text"))
			rows = append(rows, row{ahead: at > 35, Record: Record{Gateway: "arena", Epoch: epoch, Seq: *seq,
				Sample: touchline.Sample{Sensor: sensor, Metric: "m", Time: at, Value: touchline.TextValue(text)}}})
		}
		r := newRun(key, rows)
		if last := len(r.rows) - 1; rapid.IntRange(0, 9).Draw(t, "skips") == 0 {
			r = newRun(key, r.rows[last:])
			r.skipped = last
		}
		runs = append(runs, r)
	}
	return runs
}

// Whatever comes, in whatever order, and however seldom the viewer takes some
// of it: each series only moves forward, ends at its latest sample, and every
// sample was either shown or counted. Where nothing was thinned, all that is new
// was shown, in the order in which it came.
func TestConflater_MovesForwardToTheLatest(t *testing.T) {
	thinned, whole := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		epochs := []touchline.Epoch{{1}, {2}}
		c := newConflater(rapid.SampledFrom([]int{3, 5, 20, 100}).Draw(t, "series"))
		var seq, added, shown uint64
		var model, out []row // model: what a viewer that keeps up is shown
		latest := map[string]moment{}
		at := map[string]moment{}
		now := time.Unix(1000, 0)
		take := func(n int) {
			for _, r := range c.take(nil, n, now) {
				if m, ok := at[r.Sensor]; ok && r.moment().compare(m) <= 0 {
					t.Fatalf("%s goes back from %+v to %+v", r.Sensor, m, r.moment())
				}
				at[r.Sensor] = r.moment()
				out = append(out, r)
				shown++
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "blocks") {
			for _, r := range drawRuns(t, epochs, &seq) {
				added += uint64(len(r.rows) + r.skipped)
				for _, row := range r.rows {
					if m, ok := latest[row.Sensor]; !ok || row.moment().compare(m) > 0 {
						latest[row.Sensor] = row.moment()
						model = append(model, row)
					}
				}
				c.add(r, now)
			}
			now = now.Add(rapid.SampledFrom([]time.Duration{0, thinFor / 2, thinFor}).Draw(t, "later"))
			weight, held, text := 0, len(c.queue), 0
			for _, r := range c.runs {
				weight, held = weight+r.weight, held+len(r.rows)
				for i := range r.rows {
					text += len(r.rows[i].Value.Text())
				}
			}
			if weight != c.weight || held != c.held || weight > c.maxWeight || len(c.queue) > c.maxSeries || text > 128*c.maxWeight {
				t.Fatalf("%d rows of the weight %d (%d bytes of text) are held, it says %d and %d and may have %d", held, weight, text, c.held, c.weight, c.maxWeight)
			}
			if rapid.Bool().Draw(t, "takes") {
				take(rapid.IntRange(0, 60).Draw(t, "n"))
			}
		}
		now = now.Add(thinFor)
		take(1 << 20)
		left := c.takeOmitted()
		for sensor, m := range latest {
			if at[sensor] != m {
				t.Errorf("%s ends at %+v, its latest is %+v", sensor, at[sensor], m)
			}
		}
		if shown+left.thinned+left.late != added || left.series != 0 {
			t.Errorf("%d were added, %d shown, left out are %+v", added, shown, left)
		}
		if left.thinned > 0 {
			thinned++
		} else if whole++; !slices.Equal(out, model) {
			t.Errorf("nothing was thinned, and %v is not %v", out, model)
		}
		if c.held != 0 || c.weight != 0 || c.thin {
			t.Errorf("it is empty and has %d rows of the weight %d, thin %v", c.held, c.weight, c.thin)
		}
	})
	if thinned == 0 || whole == 0 {
		t.Errorf("%d runs were thinned and %d were not: this test shows nothing", thinned, whole)
	}
}

func lone(sensor string, at int64) run {
	return newRun(seriesKey{"arena", sensor, "m"}, []row{{Record: Record{Sample: touchline.Sample{Sensor: sensor, Metric: "m", Time: at}}}})
}

func TestConflater_HasNoMoreSeriesThanItMay(t *testing.T) {
	c := newConflater(4)
	now := time.Unix(1000, 0)
	for i := range 10 {
		c.add(lone(fmt.Sprint(i), 1), now)
	}
	if left := c.takeOmitted(); len(c.tracks) != 4 || left.series != 6 {
		t.Fatalf("%d series are held, left out are %+v", len(c.tracks), left)
	}
	now = now.Add(forgetAfter)
	c.add(lone("9", 2), now)
	if len(c.tracks) != 4 { // what waits was not seen yet
		t.Fatalf("%d series are held", len(c.tracks))
	}
	c.take(nil, 10, now)
	c.add(lone("0", 2), now)
	now = now.Add(2 * sweepEvery)
	c.add(lone("9", 3), now)
	if _, ok := c.tracks[seriesKey{"arena", "9", "m"}]; !ok || len(c.tracks) != 2 {
		t.Errorf("silent series do not make room: %d are held", len(c.tracks))
	}
	if rows := c.take(nil, 10, now); len(rows) != 2 || rows[0].Sensor != "0" || rows[1].Sensor != "9" {
		t.Errorf("shown are %v", rows)
	}
}

// A sensor whose clock was ahead is shown while it is, and moves on when it is
// set right.
func TestConflater_ATimeThatHasNotComeIsBehindThoseThatHave(t *testing.T) {
	now := time.Now()
	c := newConflater(4)
	for _, at := range []time.Duration{2 * time.Hour, 2*time.Hour + time.Second, 0, time.Second, 3 * time.Hour} {
		shown, ok := show(Record{Sample: touchline.Sample{Sensor: "a", Metric: "m", Time: now.Add(at).UnixNano()}}, now)
		if !ok {
			t.Fatal("it is not shown")
		}
		c.add(newRun(seriesKey{"arena", "a", "m"}, []row{shown}), now)
	}
	var have []time.Duration
	for _, r := range c.take(nil, 10, now) {
		have = append(have, time.Unix(0, r.Time).Sub(time.Unix(0, now.UnixNano())))
	}
	if want := []time.Duration{2 * time.Hour, 2*time.Hour + time.Second, 0, time.Second}; !slices.Equal(have, want) {
		t.Errorf("shown are %v, want %v", have, want)
	}
}

// Where nobody has room for a run, the sample that is made a row is the one that
// would be the last of the whole run.
func TestLive_TheLatestOfARunIsTheLastOfTheWhole(t *testing.T) {
	l := newLive(Options{}, newCounters(), nil)
	rapid.Check(t, func(t *rapid.T) {
		r := Recorded{Gateway: "arena", Received: time.Unix(1000, 0)}
		l.arena = nil
		for range rapid.IntRange(1, 20).Draw(t, "count") {
			at := r.Received.Add(time.Duration(rapid.IntRange(-3, 3).Draw(t, "minutes")) * time.Minute)
			text := strings.Repeat("x", rapid.SampledFrom([]int{1, 1, 1, maxLiveText + 1}).Draw(t, "text"))
			l.arena = append(l.arena, touchline.Sample{Sensor: "a", Metric: "m", Time: at.UnixNano(), Value: touchline.TextValue(text)})
		}
		has := func(room int) []run {
			c := newConflater(1)
			c.maxWeight = room
			return l.runs(&r, []*viewer{{flow: c}})
		}
		whole, latest := has(1000), has(0)
		if len(whole) != len(latest) || len(whole) > 0 && (len(latest[0].rows) != 1 || latest[0].rows[0] != whole[0].rows[len(whole[0].rows)-1]) {
			t.Errorf("the latest is %+v of %+v", latest, whole)
		}
	})
}
