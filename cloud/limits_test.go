package cloud

import (
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestTurnstile_LetsSoManyThroughInAnySecond and no fewer, whenever they come;
// and who was told a time finds a place then, if only those come who were told.
func TestTurnstile_LetsSoManyThroughInAnySecond(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		s := newTurnstile(limit)
		now := s.began
		var in []time.Time
		for range rapid.IntRange(1, 200).Draw(t, "comers") {
			now = now.Add(time.Duration(rapid.IntRange(-1000, 200_000).Draw(t, "pause")) * time.Microsecond)
			recent := 0 // let in during the second before
			latest := now
			for _, at := range in {
				if at.After(latest) {
					latest = at
				}
			}
			for _, at := range in {
				if latest.Sub(at) < time.Second {
					recent++
				}
			}
			after, ok := s.take(now)
			if ok != (recent < limit) {
				t.Fatalf("let in: %v, with %d of %d in the second before", ok, recent, limit)
			}
			if ok {
				in = append(in, latest)
			} else if after <= -time.Millisecond || after > maxRetry {
				t.Fatalf("told to wait %s", after)
			}
		}
	})
}

func TestTurnstile_WhoWasToldATimeHasAPlaceThen(t *testing.T) {
	const limit, comers = 50, 2000
	s := newTurnstile(limit)
	waits := make([]time.Duration, 0, comers)
	for range comers {
		if after, ok := s.take(s.began); !ok {
			waits = append(waits, after)
		}
	}
	if len(waits) != comers-limit {
		t.Fatalf("%d of %d were told to wait, want all but %d", len(waits), comers, limit)
	}
	for i, after := range waits {
		if i > 0 && after <= waits[i-1] {
			t.Fatalf("two were told the same time: %s and %s", waits[i-1], after)
		}
		if again, ok := s.take(s.began.Add(after)); !ok {
			t.Fatalf("%d was told to come after %s, and then after %s more", i, after, again)
		}
	}
	if last, want := waits[len(waits)-1], comers*time.Second/limit; last > want {
		t.Errorf("the last one was told %s, want at most %s", last, want)
	}
}

// A bucket of 2 a second is full again half a second after one was taken: 500
// names a second are 250 at a time, and what is remembered of 100,000 is no more
// than three times that.
func TestBuckets_ForgetThoseThatAreFull(t *testing.T) {
	const names = 100_000
	for _, c := range []struct{ max, want int }{{names, 750}, {300, 300}, {1, 1}} {
		b := newBuckets(2, 120, c.max)
		most, through := 0, 0
		now := time.Unix(1, 0)
		for i := range names {
			if _, ok := b.take(strconv.Itoa(i), now); ok {
				through++
			}
			most = max(most, len(b.byName))
			now = now.Add(2 * time.Millisecond)
		}
		if most > c.want {
			t.Errorf("of %d names and at most %d, %d were remembered: want %d at most", names, c.max, most, c.want)
		}
		if c.max >= 300 && through != names {
			t.Errorf("of %d names and at most %d, %d were let through", names, c.max, through)
		}
	}
}
