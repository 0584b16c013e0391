package cloud

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"touchline"
	"touchline/wire"
)

// Blocks are published, answered, recorded and sent again in any order. Every
// block is called stored when both are through, never while a copy is on its
// way into the queue, and nothing is remembered in the end.
func TestAccepted_NoNoticeOvertakesTheQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		epochs := []touchline.Epoch{{1}, {2}}
		var a accepted
		type state struct{ flying, held, recorded, told bool }
		states := map[touchline.Position]*state{}
		block := func() (*wire.Block, *state) {
			b := &wire.Block{Epoch: rapid.SampledFrom(epochs).Draw(t, "epoch"), Count: 5}
			b.First = uint64(1 + 5*rapid.IntRange(0, 7).Draw(t, "block"))
			p := touchline.Position{Epoch: b.Epoch, Seq: b.First}
			if states[p] == nil {
				states[p] = new(state)
			}
			return b, states[p]
		}
		accept := func(b *wire.Block, s *state) {
			if s.flying {
				if stored := a.accept(b, time.Unix(1, 0)); stored {
					if !s.recorded {
						t.Fatalf("%v is called stored", b.Range())
					}
					s.told, s.held = true, false
				} else {
					s.held = true
				}
				s.flying = false
			}
		}
		notice := func(b *wire.Block, s *state) {
			s.recorded = true
			for _, er := range a.stored([]wire.EpochRanges{{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}}}) {
				if er.Epoch != b.Epoch || !slices.Equal(er.Ranges, touchline.Ranges{b.Range()}) || s.flying {
					t.Fatalf("told %v of %v, flying %v", er, b.Range(), s.flying)
				}
				s.told, s.held = true, false
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"send":   func(*rapid.T) { b, s := block(); a.await(b); s.flying = true },
			"accept": func(*rapid.T) { accept(block()) },
			"notice": func(*rapid.T) {
				if b, s := block(); s.flying || s.held {
					notice(b, s)
				}
			},
			"": func(t *rapid.T) {
				for p, s := range states {
					held := slices.ContainsFunc(a.held(), func(er wire.EpochRanges) bool {
						return er.Epoch == p.Epoch && er.Ranges.Contains(touchline.Range{First: p.Seq, Last: p.Seq + 4})
					})
					if held != s.held {
						t.Fatalf("%v is held: %v, want %v", p, held, s.held)
					}
				}
			},
		})
		for p, s := range states {
			b := &wire.Block{Epoch: p.Epoch, First: p.Seq, Count: 5}
			waited := s.flying || s.held
			accept(b, s)
			if waited && s.held {
				notice(b, s)
			}
			if waited && !s.told {
				t.Fatalf("%v was not told", p)
			}
		}
		if a.list != nil || !a.since.IsZero() {
			t.Fatalf("it remembers %+v", &a)
		}
	})
}
