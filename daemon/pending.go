package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"touchline"
	"touchline/identity"
	"touchline/internal/folder"
	"touchline/uplink"
)

// A gateway may be installed before its site has a line. Its claim then waits
// in the data folder, readable for its user alone, and the gateway enrols by
// itself when the cloud is reached: until then it buffers.
const pendingFile = "claim.pending"

// Enrolled returns the id under which the cloud knows this gateway's key, "" where
// it was never enrolled.
func (f *Folder) Enrolled() (string, error) { return enrolledID(f.config.Gateway.Data) }

func enrolledID(dir string) (string, error) {
	if _, err := identity.Load(dir); errors.Is(err, os.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(dir, touchline.GatewayIDFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// EnrolLater keeps a claim until the gateway gets through to the cloud.
func (f *Folder) EnrolLater(o EnrolOptions) error {
	text, err := json.Marshal(o)
	if err == nil {
		err = os.MkdirAll(f.config.Gateway.Data, 0o700)
	}
	if err == nil {
		err = folder.Replace(filepath.Join(f.config.Gateway.Data, pendingFile), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the claim for later: %w", err)
	}
	return nil
}

// pending reads the claim that waits; nil where there is none.
func pending(c touchline.Config) (*EnrolOptions, error) {
	text, err := os.ReadFile(filepath.Join(c.Gateway.Data, pendingFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var o EnrolOptions
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err != nil {
		return nil, fmt.Errorf("read the claim that waits: %w", err)
	}
	return &o, nil
}

// Between two tries, doubling: at first a cable that was just plugged in, then a
// line that comes up within the quarter of an hour.
const (
	enrolPause    = 2 * time.Second
	enrolPauseMax = 15 * time.Minute
)

// An enroller takes the place of the uplink while a claim waits.
type enroller struct {
	config touchline.Config
	claim  EnrolOptions
	log    *slog.Logger
	since  time.Time

	mu   sync.Mutex // covers last
	last string     // why the last try did not get through
}

// errEnrolled ends the gateway, which starts again under the id that the cloud
// gave it, with a key: the service manager sees to that, and keeps the sockets.
var errEnrolled = errors.New("this gateway is enrolled now, and starts again to take up its id")

// run tries until it gets through, or ctx ends.
func (e *enroller) run(ctx context.Context) error {
	refusals := 0
	for pause := enrolPause; ; pause = min(2*pause, enrolPauseMax) {
		done, err := (&Folder{config: e.config}).Enrol(ctx, e.claim)
		if err == nil {
			if err := os.Remove(filepath.Join(e.config.Gateway.Data, pendingFile)); err != nil {
				return fmt.Errorf("forget the claim that was used: %w", err)
			}
			e.log.Info("enrolled", "gateway", done.Gateway, "venue", done.Venue)
			return errEnrolled
		}
		if ctx.Err() != nil {
			return nil
		}
		e.note(err)
		if refusals = e.counted(refusals, err); refusals == maxRefusals {
			return e.giveUp()
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// maxRefusals in a row are no accident, such as a nonce of a node that ended.
const maxRefusals = 3

// errGoesOn ends a gateway that was enrolled before the claim came.
var errGoesOn = errors.New("the cloud does not take the claim that waited, and this gateway has a key: it starts again, and goes on by that")

// counted returns how often the cloud itself has refused the claim in a row,
// where there is something else to go on by: who has been enrolled once must not
// stand still for a code that was used or has ended.
func (e *enroller) counted(refusals int, err error) int {
	if errors.Is(err, ErrNotReached) {
		return 0
	}
	if id, err := enrolledID(e.config.Gateway.Data); err != nil || id == "" {
		return 0
	}
	return refusals + 1
}

func (e *enroller) giveUp() error {
	if err := os.Remove(filepath.Join(e.config.Gateway.Data, pendingFile)); err != nil {
		return fmt.Errorf("forget the claim that was refused: %w", err)
	}
	return errGoesOn
}

func (e *enroller) note(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.last != err.Error() {
		e.log.Warn("not enrolled yet, trying again: samples are kept meanwhile", "error", err)
	}
	e.last = err.Error()
}

func (e *enroller) status() UplinkStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	return UplinkStatus{State: uplink.Waiting, Since: e.since, URL: e.claim.Cloud, LastError: "not enrolled yet: " + e.last}
}
