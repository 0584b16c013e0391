package buffer

import (
	"fmt"
	"testing"
	"time"

	"touchline"
)

// TestOpen_KnowsTheKeysOfWhatCameBack: the newer version is there again, and
// has taken its samples in. Who sends one of its messages again, under a key
// that holds for a day, is still known.
func TestOpen_KnowsTheKeysOfWhatCameBack(t *testing.T) {
	for name, meanwhile := range map[string]bool{"samples came meanwhile": true, "none came meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			old, clock := repeatOptions(t)
			b := startBuffer(t, old)
			clock.advance(50 * time.Hour) // it has run for long
			long := touchline.Key{ID: touchline.DigestOf("c"), Body: touchline.DigestOf("d"), Count: 4, Again: true, Long: true}
			named := touchline.Arrival{Samples: stampedSamples(200, 4), Keys: []touchline.Key{long}}
			if err := send(t, b, named); err != nil {
				t.Fatal(err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}

			opts, clock := repeatOptions(t)
			b = startBuffer(t, opts)
			clock.advance(time.Hour)
			want := uint64(4)
			if meanwhile {
				mustAppend(t, b, numbered(0, 10))
				want += 10
			}
			flush(t, b)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			lay(t, opts.Dir, fmt.Sprintf("%s.newer-%d-20261122T120000Z", databaseName, schemaVersion), filesOf(t, old.Dir))

			for start := range 2 { // of which the first takes it in
				b = startBuffer(t, opts)
				if err := send(t, b, named); err != nil {
					t.Fatal(err)
				}
				if s := b.Stats(); uint64(s.Samples) != want || s.RepeatsByKey != 4 {
					t.Errorf("start %d: %d samples are stored, want %d; %d repeats by their names; aside %+v", start, s.Samples, want, s.RepeatsByKey, s.Aside)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
			}

			b = startBuffer(t, opts) // in time they are forgotten
			clock.advance(25 * time.Hour)
			mustAppend(t, b, numbered(50, 1))
			if err := send(t, b, named); err != nil {
				t.Fatal(err)
			}
			if s := b.Stats(); uint64(s.Samples) != want+5 {
				t.Errorf("after a day %d samples are stored, want %d", s.Samples, want+5)
			}
		})
	}
}
