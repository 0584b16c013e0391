package sensors

import (
	"container/heap"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
)

// registry remembers the sensors seen, at most limit of them: some 200 bytes
// each, so 10,000 are 2 MB. Beyond that the longest silent one is forgotten.
type registry struct {
	limit     int
	forgotten atomic.Uint64

	mu      sync.Mutex // covers sensors and silent, not what a seen counts
	sensors map[string]*seen
	silent  silence
}

// seen is one sensor. Connections keep a pointer to it, so that a batch costs
// no lock; gone tells them that it was forgotten meanwhile.
type seen struct {
	name      string
	transport atomic.Uint32
	last      atomic.Int64 // ns since the Unix epoch
	samples   atomic.Uint64
	gone      atomic.Bool
	key       int64 // last when it took its place in the heap; covered by registry.mu
}

func newRegistry(limit int) *registry {
	return &registry{limit: limit, sensors: make(map[string]*seen)}
}

// seenCache is what one connection remembers of the registry. It is used by
// one goroutine at a time. A connection usually speaks for one sensor; one
// that is a gateway itself speaks for a few.
type seenCache struct {
	last *seen
	more map[string]*seen
}

// maxCached bounds a cache: 64 entries of 24 bytes and their map, 4 KiB.
const maxCached = 64

// add books durable samples. Samples of one sensor usually stand together, so
// runs are counted, not samples.
func (r *registry) add(t Transport, cache *seenCache, samples []touchline.Sample, arrived int64) {
	for i := 0; i < len(samples); {
		name := samples[i].Sensor
		first := i
		for i++; i < len(samples) && samples[i].Sensor == name; i++ {
		}
		s := r.cached(cache, name)
		s.samples.Add(uint64(i - first))
		if s.last.Load() != arrived {
			s.last.Store(arrived)
		}
		if s.transport.Load() != uint32(t) {
			s.transport.Store(uint32(t))
		}
	}
}

func (r *registry) cached(cache *seenCache, name string) *seen {
	if s := cache.last; s != nil && s.name == name && !s.gone.Load() {
		return s
	}
	s := cache.more[name]
	if s == nil || s.gone.Load() {
		s = r.find(name)
		if cache.last != nil { // the second sensor of this connection: keep both
			if cache.more == nil || len(cache.more) >= maxCached {
				cache.more = make(map[string]*seen)
			}
			cache.more[s.name] = s
		}
	}
	cache.last = s
	return s
}

// find returns the sensor's entry and makes it, and room for it, if need be.
func (r *registry) find(name string) *seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.sensors[name]; ok {
		return s
	}
	if len(r.sensors) >= r.limit {
		r.forget()
	}
	s := &seen{name: name}
	r.sensors[name] = s
	heap.Push(&r.silent, s)
	return s
}

// forget drops the longest silent sensor. The heap's keys are as old as the
// last visit here, so its top may have spoken since: then it takes its new
// place, and the next one is looked at.
func (r *registry) forget() {
	for {
		top := r.silent[0]
		if last := top.last.Load(); last > top.key {
			top.key = last
			heap.Fix(&r.silent, 0)
			continue
		}
		heap.Pop(&r.silent)
		delete(r.sensors, top.name)
		top.gone.Store(true)
		r.forgotten.Add(1)
		return
	}
}

// list returns a copy of what is known, in order of name.
func (r *registry) list() []SensorStats {
	r.mu.Lock()
	all := make([]SensorStats, 0, len(r.sensors))
	for _, s := range r.sensors {
		if s.samples.Load() == 0 {
			continue // found, and about to be counted
		}
		all = append(all, SensorStats{
			Name: s.name, Transport: Transport(s.transport.Load()),
			LastSeen: time.Unix(0, s.last.Load()).UTC(), Samples: s.samples.Load(),
		})
	}
	r.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}

// silence is a heap with the longest silent sensor on top.
type silence []*seen

func (h silence) Len() int           { return len(h) }
func (h silence) Less(i, j int) bool { return h[i].key < h[j].key }
func (h silence) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *silence) Push(x any)        { *h = append(*h, x.(*seen)) }
func (h *silence) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
