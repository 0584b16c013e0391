package netlab

import (
	"container/heap"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// A way is one direction of a Tunnel: take puts packets into the queue, each
// with its time, and deliver takes them out when that has come.
type way struct {
	in, out *os.File
	closed  chan struct{}
	arrived chan struct{} // 1 slot: the queue has a new first packet

	mu         sync.Mutex // covers what follows
	conditions Conditions
	cut        bool
	rand       *rand.Rand
	queue      packets
	number     uint64
	lineFree   time.Time // when the packet before has been transmitted
	lastDue    time.Time // of the last packet that did not overtake
	stats      TunnelStats
}

func newWay(in, out *os.File, seed uint64, direction int) *way {
	return &way{in: in, out: out, closed: make(chan struct{}), arrived: make(chan struct{}, 1), rand: newRand(seed, direction)}
}

// take reads packets until the device is closed.
func (w *way) take() {
	buf := make([]byte, maxPacket)
	for {
		n, err := w.in.Read(buf)
		if err != nil {
			return
		}
		if !w.accept(buf[:n], time.Now()) {
			continue
		}
		select {
		case w.arrived <- struct{}{}:
		default:
		}
	}
}

// accept decides about one packet. Three numbers are drawn for each, whatever
// the conditions, so that a seed means the same under all of them.
func (w *way) accept(data []byte, now time.Time) (queued bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &w.conditions
	lost, overtakes, jitter := w.rand.Float64() < c.Loss, w.rand.Float64() < c.Reorder, w.rand.Float64()
	if w.cut || lost {
		w.stats.Lost++
		return false
	}
	if w.lineFree.Before(now) {
		w.lineFree = now
	}
	most := c.QueueBytes
	if most == 0 {
		most = defaultQueueBytes
	}
	if wait := w.lineFree.Sub(now); c.BitsPerSecond > 0 && wait > transmission(most, c.BitsPerSecond) {
		w.stats.Overflowed++
		return false
	}
	w.lineFree = w.lineFree.Add(transmission(len(data), c.BitsPerSecond))
	due := w.lineFree
	if overtakes {
		w.stats.Overtook++
	} else {
		due = due.Add(c.Delay + time.Duration(jitter*float64(c.Jitter)))
		if due.Before(w.lastDue) {
			due = w.lastDue
		}
		w.lastDue = due
	}
	w.stats.Carried++
	w.number++
	heap.Push(&w.queue, packet{due: due, number: w.number, data: append([]byte(nil), data...)})
	return true
}

// deliver writes each packet when it is due, until the link is closed.
func (w *way) deliver() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		data, wait := w.next(time.Now())
		if data != nil {
			// A device that is down refuses: the packet is lost, as on a cable.
			_, _ = w.out.Write(data)
			continue
		}
		timer.Reset(wait)
		select {
		case <-w.closed:
			return
		case <-w.arrived:
		case <-timer.C:
		}
	}
}

// next returns the packet that is due, or how long to wait for one.
func (w *way) next(now time.Time) (data []byte, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 {
		if wait = w.queue[0].due.Sub(now); wait > 0 {
			return nil, wait
		}
		p := heap.Pop(&w.queue).(packet)
		if !w.cut {
			return p.data, 0
		}
		w.stats.Lost++
	}
	return nil, time.Hour // arrived comes before
}

func (w *way) counts() TunnelStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

type packet struct {
	due    time.Time
	number uint64 // of two at one time, the first stays first
	data   []byte
}

// packets is a heap, the first to deliver on top.
type packets []packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if !p[i].due.Equal(p[j].due) {
		return p[i].due.Before(p[j].due)
	}
	return p[i].number < p[j].number
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(packet)) }
func (p *packets) Pop() any {
	old := *p
	last := old[len(old)-1]
	old[len(old)-1] = packet{}
	*p = old[:len(old)-1]
	return last
}
