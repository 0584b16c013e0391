package installer

import (
	"context"
	"errors"
	"time"
)

// liveSeconds is for how long a gateway that said that it is ready is looked
// at: one that dies of its first samples, or of what its buffer holds, does so
// then. One that died is looked at for moreSeconds from then on: it may do so
// once, as it does when it has just been enrolled.
const (
	liveSeconds = 5
	moreSeconds = 10
)

// errUnwatched says that somebody did not want to wait any longer: what was
// asked for is done.
var errUnwatched = errors.New("the service manager has started it; whether it lives was not looked at to the end")

// pause waits for d, or returns that it was not wanted.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return errUnwatched
	case <-timer.C:
		return nil
	}
}
