package recordertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"touchline"
	"touchline/cloud"
)

type batch = []cloud.Delivery

var (
	fresh       = cloud.Outcome{}
	repeat      = cloud.Outcome{Repeat: true}
	aside       = cloud.Outcome{KeptAside: true}
	asideRepeat = cloud.Outcome{KeptAside: true, Repeat: true}
)

var recordTests = map[string]func(*fixture){
	"Record_StoresWhatIsNew": func(f *fixture) {
		f.addGateways("north", "south")
		e1, e2 := touchline.NewEpoch(), touchline.NewEpoch()
		a := NewDelivery(f, "north", e1, 1, Series("belt-1", 1000, 10, 50))
		b := NewDelivery(f, "south", e2, 1, Series("belt-2", 1005, 10, 50))
		c := NewDelivery(f, "north", e1, 51, Series("belt-1", 1500, 10, 1))
		f.record(batch{a, b}, fresh, fresh)
		f.record(batch{c}, fresh)
		f.has(a, b, c)
		f.stored("north", e1, touchline.Range{First: 1, Last: 51})
		f.stored("south", e2, touchline.Range{First: 1, Last: 50})
		f.counts("north", 51, 2, 0, 0)
		f.counts("south", 50, 1, 0, 0)
	},

	"Record_EmptyBatchIsNothing": func(f *fixture) {
		f.record(nil)
		f.has()
	},

	"Record_RepeatIsStoredAndChangesNothing": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 20))
		b := NewDelivery(f, "north", epoch, 21, Series("belt", 200, 10, 20))
		f.record(batch{a, b}, fresh, fresh)
		f.record(batch{b}, repeat)
		f.record(batch{a, b}, repeat, repeat)
		f.reopen()
		f.record(batch{b, a}, repeat, repeat)
		f.has(a, b)
		f.counts("north", 40, 2, 0, 0)
	},

	"Record_SameBlockTwiceInABatchIsARepeat": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 20))
		bad := Undecodable("north", epoch, 21, 7, "?")
		f.record(batch{a, a, bad, a, bad}, fresh, repeat, aside, repeat, asideRepeat)
		f.has(a)
		f.counts("north", 20, 1, 1, 0)
	},

	"Record_OverlapIsKeptAside": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		first := NewDelivery(f, "north", epoch, 11, Series("belt", 0, 10, 10)) // 11 to 20
		f.record(batch{first}, fresh)
		for _, overlap := range []cloud.Delivery{
			NewDelivery(f, "north", epoch, 5, Series("other", 0, 10, 10)),  // 5 to 14: across the start
			NewDelivery(f, "north", epoch, 20, Series("other", 0, 10, 10)), // 20 to 29: the last one
			NewDelivery(f, "north", epoch, 12, Series("other", 0, 10, 2)),  // 12 to 13: within
			NewDelivery(f, "north", epoch, 1, Series("other", 0, 10, 40)),  // 1 to 40: around
			NewDelivery(f, "north", epoch, 11, Series("other", 0, 10, 10)), // the same bounds, another CRC
			NewDelivery(f, "north", epoch, 11, Series("belt", 0, 10, 9)),   // a part of it
		} {
			f.record(batch{overlap}, aside)
			f.record(batch{overlap}, asideRepeat)
		}
		f.has(first)
		f.stored("north", epoch, touchline.Range{First: 1, Last: 40})
		f.counts("north", 10, 1, 6, 0)
		f.record(batch{first}, repeat)
	},

	"Record_UndecodableIsKeptAsideAndStored": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 5))
		bad := Undecodable("north", epoch, 6, 5, "\x00\xff")
		empty := Undecodable("north", epoch, 30, 1, "")
		c := NewDelivery(f, "north", epoch, 11, Series("belt", 100, 10, 5))
		got := f.record(batch{a, bad, c, empty}, fresh, aside, fresh, aside)
		if got[1].Reason != bad.Problem {
			f.Fatalf("reason is %q, want the problem %q", got[1].Reason, bad.Problem)
		}
		f.reopen()
		f.record(batch{bad, a}, asideRepeat, repeat)
		f.has(a, c)
		f.stored("north", epoch, touchline.Range{First: 1, Last: 15}, touchline.Range{First: 30, Last: 30})
		f.counts("north", 10, 2, 2, 0)
	},

	"Record_EpochOfAnotherGatewayIsKeptAside": func(f *fixture) {
		f.addGateways("north", "south")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 10))
		stolen := NewDelivery(f, "south", epoch, 11, Series("thief", 0, 10, 10))
		copied := a
		copied.Gateway = "south"
		f.record(batch{a, stolen, copied}, fresh, aside, aside)
		f.record(batch{stolen, copied}, asideRepeat, asideRepeat)
		f.stored("south", epoch, touchline.Range{First: 1, Last: 20}) // as it was told
		// The owner is not hindered.
		f.stored("north", epoch, touchline.Range{First: 1, Last: 10})
		b := NewDelivery(f, "north", epoch, 11, Series("belt", 100, 10, 10))
		f.record(batch{b}, fresh)
		f.has(a, b)
		f.counts("north", 20, 2, 0, 0)
		f.counts("south", 0, 0, 2, 0)
	},

	"Record_ErrorLeavesNothing": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 10))
		b := NewDelivery(f, "north", epoch, 11, Series("belt", 100, 10, 10))
		nobody := NewDelivery(f, "nobody", touchline.NewEpoch(), 1, Series("belt", 0, 10, 10))
		f.record(batch{a}, fresh)
		f.fails(f.Context(), batch{b, nobody})
		f.has(a)
		f.stored("north", epoch, touchline.Range{First: 1, Last: 10})
		f.counts("north", 10, 1, 0, 0)
		f.record(batch{b}, fresh)
		f.has(a, b)
	},

	"Record_EndedContextIsAnError": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 10))
		ctx, cancel := context.WithCancel(f.Context())
		cancel()
		_, err := f.store.Record(ctx, batch{a})
		if !errors.Is(err, context.Canceled) {
			f.Fatalf("Record returned %v, want context.Canceled", err)
		}
		f.record(batch{a}) // a repeat or not: an error means unknown
		f.has(a)
	},

	"Record_FailedCommitLeavesNothing": func(f *fixture) {
		faulty, ok := f.store.(Faulty)
		if !ok {
			f.Skip("the store is not Faulty: it can't be made to fail at a commit")
		}
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 10))
		b := NewDelivery(f, "north", epoch, 11, Series("belt", 100, 10, 10))
		bad := Undecodable("north", epoch, 21, 5, "?")
		f.record(batch{a}, fresh)
		faulty.FailNextCommit(f.T)
		f.fails(f.Context(), batch{a, b, bad})
		f.has(a)
		f.stored("north", epoch, touchline.Range{First: 1, Last: 10})
		f.record(batch{a, b, bad}, repeat, fresh, aside)
		f.has(a, b)
		f.counts("north", 20, 2, 1, 0)
	},

	// A gateway that sends anything in any order, again and again, through
	// failures and restarts: what is stored is what a simple model says.
	"Record_RandomHistoryStoresEachSampleOnce": func(f *fixture) {
		f.addGateways("north", "south")
		random := rand.New(rand.NewPCG(7, uint64(len(f.Name()))))
		m := newModel(f.T, random)
		for range 150 {
			work := m.nextBatch()
			if faulty, ok := f.store.(Faulty); ok && random.IntN(6) == 0 {
				faulty.FailNextCommit(f.T)
				f.fails(f.Context(), work)
			}
			f.record(work, m.apply(work)...)
			if random.IntN(12) == 0 {
				f.reopen()
			}
		}
		f.has(m.among...)
		for epoch, numbers := range m.stored {
			f.stored(m.owner[epoch], epoch, numbers...)
		}
	},
}

// A model is the simplest record store that is right.
type model struct {
	t      *testing.T
	random *rand.Rand
	sent   []cloud.Delivery // to be repeated at times
	epochs []touchline.Epoch
	next   []uint64 // number to continue each epoch with

	among  []cloud.Delivery // the samples
	kept   []cloud.Delivery // aside
	stored map[touchline.Epoch]touchline.Ranges
	owner  map[touchline.Epoch]string
}

func newModel(t *testing.T, random *rand.Rand) *model {
	m := &model{t: t, random: random, stored: make(map[touchline.Epoch]touchline.Ranges), owner: make(map[touchline.Epoch]string)}
	for range 4 {
		m.epochs = append(m.epochs, touchline.NewEpoch())
		m.next = append(m.next, 1)
	}
	return m
}

// nextBatch makes up deliveries: most continue an epoch, some leave a hole,
// go back, repeat, can't be decoded or come from the wrong gateway.
func (m *model) nextBatch() batch {
	var work batch
	for range 1 + m.random.IntN(5) {
		if len(m.sent) > 0 && m.random.IntN(4) == 0 {
			work = append(work, m.sent[m.random.IntN(len(m.sent))])
			continue
		}
		e := m.random.IntN(len(m.epochs))
		gateway := []string{"north", "south"}[e%2]
		if m.random.IntN(15) == 0 {
			gateway = []string{"south", "north"}[e%2]
		}
		first, count := m.next[e], 1+m.random.IntN(9)
		switch m.random.IntN(8) {
		case 0: // into what is there, perhaps
			first = 1 + uint64(m.random.IntN(int(first)))
		case 1: // behind a hole
			first += uint64(m.random.IntN(20))
		}
		m.next[e] = max(m.next[e], first+uint64(count))
		var d cloud.Delivery
		if m.random.IntN(10) == 0 {
			d = Undecodable(gateway, m.epochs[e], first, uint32(count), string(rune('a'+m.random.IntN(26))))
		} else {
			d = NewDelivery(m.t, gateway, m.epochs[e], first, Series("belt", int64(m.random.IntN(1000)), int64(m.random.IntN(3)), count))
		}
		work = append(work, d)
		m.sent = append(m.sent, d)
	}
	return work
}

// apply records the batch and returns what the outcomes have to be.
func (m *model) apply(work batch) []cloud.Outcome {
	var outcomes []cloud.Outcome
	for _, d := range work {
		epoch := d.Block.Epoch
		if m.owner[epoch] == "" {
			m.owner[epoch] = d.Gateway
		}
		own := m.owner[epoch] == d.Gateway
		numbers := m.stored[epoch]
		switch {
		case contains(m.among, d):
			outcomes = append(outcomes, repeat)
		case contains(m.kept, d):
			outcomes = append(outcomes, asideRepeat)
		case !own || d.Problem != "" || numbers.Overlaps(d.Block.Range()):
			outcomes = append(outcomes, aside)
			m.kept = append(m.kept, d)
		default:
			outcomes = append(outcomes, fresh)
			m.among = append(m.among, d)
		}
		if own {
			numbers.Add(d.Block.Range())
			m.stored[epoch] = numbers
		}
	}
	return outcomes
}

func contains(list []cloud.Delivery, d cloud.Delivery) bool {
	for _, other := range list {
		if other.Gateway == d.Gateway && other.Block.Epoch == d.Block.Epoch && other.Block.First == d.Block.First &&
			other.Block.Count == d.Block.Count && other.Block.CRC == d.Block.CRC {
			return true
		}
	}
	return false
}
