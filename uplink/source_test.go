package uplink

import (
	"context"
	"slices"
	"sync"
	"testing"

	"touchline"
	"touchline/wire"
)

// A memSource is a Source in memory that checks what the uplink asks of it.
type memSource struct {
	t    testing.TB
	bell *bell
	// mayAck says whether the cloud called r stored.
	mayAck func(touchline.Epoch, touchline.Range) bool

	mu       sync.Mutex
	epochs   []touchline.Epoch // in order of their begin
	blocks   []wire.Block      // held, in order
	acked    map[touchline.Epoch]touchline.Ranges
	lost     []wire.Lost
	lostOK   []uint64 // confirmed
	handed   int      // bytes that Next returned so far
	nextErr  error    // what Next returns, once
	ackErr   error    // what Ack returns, once
	stalls   int      // calls of Next that hang until their context ends
	waits    int      // calls of Next that are waiting
	ackCalls int

	reconciled [][]wire.EpochRanges // each call of Reconcile
}

func newMemSource(t testing.TB, b *bell) *memSource {
	return &memSource{t: t, bell: b, acked: make(map[touchline.Epoch]touchline.Ranges)}
}

func (m *memSource) add(list ...wire.Block) {
	m.mu.Lock()
	for _, b := range list {
		if !slices.Contains(m.epochs, b.Epoch) {
			m.epochs = append(m.epochs, b.Epoch)
		}
		m.blocks = append(m.blocks, b)
	}
	m.mu.Unlock()
	m.bell.ring()
}

// behind says whether b is behind p.
func (m *memSource) behind(b *wire.Block, p touchline.Position) bool {
	at, of := slices.Index(m.epochs, p.Epoch), slices.Index(m.epochs, b.Epoch)
	return of > at || of == at && b.First > p.Seq
}

func (m *memSource) Next(ctx context.Context, after touchline.Position, maxBytes int) ([]wire.Block, error) {
	if maxBytes < 1 {
		m.t.Errorf("Next was asked for %d bytes", maxBytes)
	}
	for {
		changed := m.bell.next()
		m.mu.Lock()
		if err := m.nextErr; err != nil {
			m.nextErr = nil
			m.mu.Unlock()
			return nil, err
		}
		if m.stalls > 0 {
			m.stalls--
			m.mu.Unlock()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		var out []wire.Block
		size := 0
		for i := range m.blocks {
			b := &m.blocks[i]
			if !m.behind(b, after) {
				continue
			}
			if size += len(b.Data); len(out) > 0 && size > maxBytes {
				break
			}
			out = append(out, *b)
			m.handed += len(b.Data)
		}
		if len(out) == 0 {
			m.waits++
		}
		m.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		m.mu.Lock()
		m.waits--
		m.mu.Unlock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (m *memSource) Ack(stored []wire.EpochRanges, lost []uint64) error {
	m.mu.Lock()
	defer m.bell.ring()
	defer m.mu.Unlock()
	m.ackCalls++
	if err := m.ackErr; err != nil {
		m.ackErr = nil
		return err
	}
	for _, er := range stored {
		set := m.acked[er.Epoch]
		for _, r := range er.Ranges {
			if m.mayAck != nil && !m.mayAck(er.Epoch, r) {
				m.t.Errorf("the source was told to forget %s %v, which the cloud did not call stored", er.Epoch, r)
			}
			set.Add(r)
		}
		m.acked[er.Epoch] = set
	}
	m.blocks = slices.DeleteFunc(m.blocks, func(b wire.Block) bool { return m.acked[b.Epoch].Contains(b.Range()) })
	m.lostOK = append(m.lostOK, lost...)
	m.lost = slices.DeleteFunc(m.lost, func(l wire.Lost) bool { return slices.Contains(lost, l.ID) })
	return nil
}

func (m *memSource) Reconcile(stored []wire.EpochRanges) error {
	m.mu.Lock()
	defer m.bell.ring()
	defer m.mu.Unlock()
	m.reconciled = append(m.reconciled, stored)
	return nil
}

func (m *memSource) Held() ([]wire.Held, []wire.Lost) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var held []wire.Held
	for i := range m.blocks {
		b := &m.blocks[i]
		if n := len(held); n == 0 || held[n-1].Epoch != b.Epoch {
			held = append(held, wire.Held{Epoch: b.Epoch, Oldest: b.First})
		}
		held[len(held)-1].Next = b.Last() + 1
	}
	return held, slices.Clone(m.lost)
}

// left returns how many blocks are held.
func (m *memSource) left() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.blocks)
}

// idle says whether the uplink waits for more.
func (m *memSource) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waits > 0
}

func (m *memSource) get(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// evict gives up the block at an index, as a limit does.
func (m *memSource) evict(i int) {
	m.mu.Lock()
	if i < len(m.blocks) {
		m.blocks = slices.Delete(m.blocks, i, i+1)
	}
	m.mu.Unlock()
	m.bell.ring()
}
