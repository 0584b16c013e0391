package credential

import (
	"container/heap"
	"errors"
	"sync"
	"time"
)

// ErrFull is wrapped by the error for a handshake that is sound, but can't be
// remembered. Answer 503 with Retry-After: what is remembered expires within
// handshakeMemory.
var ErrFull = errors.New("too many handshakes within a short time")

// 500 handshakes a second, for the longest time that one is remembered
// (handshakeMemory, 150 s), are 75,000. An entry costs about 150 bytes: 15 MB
// at the bound. Only handshakes whose signature held are remembered, so no
// stranger fills it, and one gateway that misbehaves has maxPerGateway: a
// sound one, with delays doubling to 60 s, makes about ten in that time.
const (
	maxRemembered = 100_000
	maxPerGateway = 60
)

// setBack is how much longer a mark is remembered than it must be: this clock
// may be set back by as much without letting a replay in.
const setBack = 10 * time.Second

// memory remembers what may be used once, until it would be refused anyway.
// Where it is full it refuses: forgetting early would let a replay in.
type memory struct {
	mu      sync.Mutex // covers what follows
	used    map[[32]byte]struct{}
	expiry  byExpiry
	perName map[string]int
	max     int
}

type remembered struct {
	until int64 // ns since the Unix epoch
	mark  [32]byte
	name  string
}

func newMemory(max int) *memory {
	return &memory{used: map[[32]byte]struct{}{}, perName: map[string]int{}, max: max}
}

// use remembers a mark of a gateway. It returns ErrReplayed for one that is
// remembered already.
func (m *memory) use(name string, mark [32]byte, until, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.expiry) > 0 && m.expiry[0].until <= now.UnixNano() {
		gone := heap.Pop(&m.expiry).(remembered)
		delete(m.used, gone.mark)
		if m.perName[gone.name]--; m.perName[gone.name] == 0 {
			delete(m.perName, gone.name)
		}
	}
	if _, known := m.used[mark]; known {
		return ErrReplayed
	}
	if len(m.used) >= m.max || m.perName[name] >= maxPerGateway {
		return ErrFull
	}
	m.used[mark] = struct{}{}
	m.perName[name]++
	heap.Push(&m.expiry, remembered{until.Add(setBack).UnixNano(), mark, name})
	return nil
}

// byExpiry is a heap with what expires first on top.
type byExpiry []remembered

func (h byExpiry) Len() int           { return len(h) }
func (h byExpiry) Less(i, j int) bool { return h[i].until < h[j].until }
func (h byExpiry) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byExpiry) Push(x any)        { *h = append(*h, x.(remembered)) }
func (h *byExpiry) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = remembered{}
	*h = old[:len(old)-1]
	return last
}
