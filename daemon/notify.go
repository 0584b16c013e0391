package daemon

import (
	"fmt"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
)

const (
	// workTime is how long the service manager waits for the next sign of
	// work. Between two a salvage reads 64 MiB and writes 8 MiB: ten seconds
	// of a slow SD card.
	workTime = 2 * time.Minute
	// signEvery bounds how often it is told.
	signEvery = 5 * time.Second
)

// stillOpening returns a function that tells the service manager, if there is
// one, that the gateway is opening a large buffer and makes progress. Without
// it TimeoutStartSec would end a salvage, time and again.
func stillOpening() func() {
	var last time.Time
	message := fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=Taking blocks out of a database that was set aside", workTime.Microseconds())
	return func() {
		if now := time.Now(); last.IsZero() || now.Sub(last) >= signEvery {
			last = now
			_, _ = sdnotify.SdNotify(false, message) // nobody listens: nobody waits
		}
	}
}
