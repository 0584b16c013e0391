//go:build !linux

package clock

import (
	"crypto/rand"
	"time"

	"touchline"
)

// machine returns what every system has: the process's own monotonic clock,
// so that each process counts as a boot of its own. Whether the system's clock
// is synchronised is not asked: the cloud's time says it.
func machine() (sources, error) {
	var boot touchline.Boot
	rand.Read(boot[:]) // documented never to fail
	start := time.Now()
	return sources{
		boot: boot, now: time.Now, wall: time.Now,
		uptime:       func() time.Duration { return time.Since(start) + 1 }, // 0 is before everything
		synchronised: func() bool { return false },
	}, nil
}
