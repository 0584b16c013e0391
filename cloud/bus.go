package cloud

import (
	"sync"
	"sync/atomic"
	"time"

	"touchline/wire"
)

// A Bus carries what one node recorded to the nodes that have viewers. It
// carries it at most once, in the order of each node's commits, and is no part
// of storing: what is lost on it is in the record store.
//
// All that a cluster records goes over it, at some two bytes a sample: ten
// million samples a second are 20 MB/s to each node that follows, and none to
// the others. So a node picks what its viewers want out of all.
type Bus interface {
	// Publish hands blocks on that are committed and synced. It does not wait for
	// anybody: a follower that can't be reached in time misses them. Nobody
	// changes the blocks any more; the slice is the caller's again when it returns.
	Publish(recorded []Recorded)
	// Follow has deliver called with what is published from now on, by one
	// goroutine at a time, until unfollow has returned. deliver does not block,
	// and keeps nothing of the slice but the blocks in it.
	Follow(deliver func(recorded []Recorded)) (unfollow func(), err error)
}

// Recorded is a block that the record store has, as the bus carries it.
type Recorded struct {
	Gateway  string
	Lane     wire.Lane
	Received time.Time
	Block    wire.Block // its Data is shared and never changed
}

// A LocalBus is the Bus within one process. Make it with NewLocalBus.
type LocalBus struct {
	count atomic.Int32 // of followers, so that nothing is locked where there is none

	mu        sync.Mutex // covers followers, and that deliver is called by one goroutine
	followers map[*func([]Recorded)]struct{}
}

// NewLocalBus returns a bus that nobody follows.
func NewLocalBus() *LocalBus { return &LocalBus{followers: map[*func([]Recorded)]struct{}{}} }

// Publish implements Bus.
func (b *LocalBus) Publish(recorded []Recorded) {
	if b.count.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for deliver := range b.followers {
		(*deliver)(recorded)
	}
}

// Follow implements Bus. It has no error.
func (b *LocalBus) Follow(deliver func([]Recorded)) (unfollow func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.followers[&deliver] = struct{}{}
	b.count.Store(int32(len(b.followers)))
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.followers, &deliver)
		b.count.Store(int32(len(b.followers)))
	}, nil
}
