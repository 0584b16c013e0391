package daemon

import (
	"context"
	"sync"
	"time"
)

// rateWindow is the time over which the rate of samples is averaged.
const rateWindow = 10

// rate keeps a total's last readings, one a second.
type rate struct {
	mu       sync.Mutex // covers what follows
	readings [rateWindow + 1]uint64
	n        int // readings so far
}

// run reads total each second until ctx ends.
func (r *rate) run(ctx context.Context, total func() uint64) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	r.add(total())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.add(total())
		}
	}
}

func (r *rate) add(total uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readings[r.n%len(r.readings)] = total
	r.n++
}

// perSecond returns the mean rate over the window, or over the running time
// where that is shorter.
func (r *rate) perSecond() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	span := min(r.n-1, rateWindow)
	if span < 1 {
		return 0
	}
	newest := r.readings[(r.n-1)%len(r.readings)]
	oldest := r.readings[(r.n-1-span)%len(r.readings)]
	return float64(newest-oldest) / float64(span)
}
