package buffer

import "time"

// A runningClock counts the time for which the gateway ran with this file.
// Ages are measured by it and by nothing else: a wall clock that is set at
// last, months ahead of where it stood, must not expire a match's data. The
// file carries the count from one opening to the next; time spent switched
// off is not counted.
type runningClock struct {
	base    time.Duration
	started time.Duration
	elapsed func() time.Duration // monotonic
}

func newRunningClock(baseMS int64, elapsed func() time.Duration) runningClock {
	if elapsed == nil {
		start := time.Now()
		elapsed = func() time.Duration { return time.Since(start) } // uses the monotonic reading
	}
	return runningClock{base: time.Duration(baseMS) * time.Millisecond, started: elapsed(), elapsed: elapsed}
}

// A block that was found damaged, and recorded as lost for it, keeps its row;
// the time of its commit is then written as -1 less it. That is where a start
// sees that this loss was recorded.
func runningOf(committed int64) int64 {
	if committed < 0 {
		return -1 - committed
	}
	return committed
}

// now returns the running time in milliseconds.
func (c *runningClock) now() int64 {
	return (c.base + c.elapsed() - c.started).Milliseconds()
}
