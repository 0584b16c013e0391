package daemon

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"touchline"
	"touchline/credential"
	"touchline/identity"
	"touchline/uplink"
)

// A roller gives the gateway a new key: when it is told to, and by itself when
// the key is old. The uplink reads the key at each handshake, so the new one
// counts from the next on, and the session that is open stays.
type roller struct {
	config  touchline.Config
	log     *slog.Logger
	now     func() time.Time       // zero while the clock is not synchronised
	change  func() <-chan struct{} // closed when that changes
	online  func() bool            // a session is open: the cloud knows the key
	spread  time.Duration          // keys that are due at once are rolled within this
	patient time.Duration          // how long without a session before the cloud may be one that has forgotten the key

	one chan struct{} // held by who changes keys

	mu      sync.Mutex // covers what follows
	status  KeyStatus
	failed  string    // why the last roll did; "" after one that did not
	tries   int       // that failed in a row
	tryAt   time.Time // nothing is tried before; monotonic
	waited  bool      // for a part of spread
	offline time.Time // since when there has been no session, as far as it was looked; monotonic
}

const (
	// What makes a roll fail lasts as long as the line is down, or until a
	// person does something; the key in use counts meanwhile.
	rollPause    = time.Minute
	maxRollPause = 6 * time.Hour

	// maxRemindPause bounds how long a cloud that is back from a backup may
	// wait for a gateway that it does not know.
	maxRemindPause = time.Hour

	// rollSpread keeps keys apart that were overdue before this version could
	// roll them: 2,000 gateways make three rolls a second.
	rollSpread = 10 * time.Minute

	// rollShare is the part of key_max_age over which keys are rolled that were
	// made together: three weeks of a year.
	rollShare = 16

	// rollLook is how often files and clock are looked at again.
	rollLook = time.Hour

	// offlinePatience is longer than a cloud takes that is started again.
	offlinePatience = time.Minute
)

func (d *Daemon) newRoller(c touchline.Config, logger *slog.Logger) *roller {
	r := &roller{config: c, log: logger.With("component", "key"), spread: rollSpread, patient: offlinePatience, one: make(chan struct{}, 1)}
	r.now = func() time.Time {
		now, clock := d.clock.Now()
		if clock.State != touchline.ClockSynchronised {
			return time.Time{}
		}
		return now
	}
	r.change = func() <-chan struct{} {
		_, changed := d.clock.Clock()
		return changed
	}
	r.online = func() bool { return d.uplinkStatus().State == uplink.Connected }
	r.look()
	return r
}

// run rolls the key when it is due, and finishes what was begun, until ctx
// ends; it returns nil then.
func (r *roller) run(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := r.change()
		timer := time.NewTimer(r.step(ctx))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// step does what is to be done now, and returns for how long there is nothing
// then.
func (r *roller) step(ctx context.Context) time.Duration {
	status, now := r.look(), r.now()
	if len(r.config.Uplink.URLs) == 0 || status.Thumbprint == "" {
		return rollLook
	}
	if wait := r.untilTry(); wait > 0 {
		return min(wait, rollLook)
	}
	switch {
	case status.Next != "": // a person began it, or it was cut
		return r.try(ctx)
	case now.IsZero(): // how old a key is can't be told
	case !status.Due.IsZero() && !now.Before(status.Due):
		if wait := r.apart(); wait > 0 {
			return min(wait, rollLook)
		}
		return r.try(ctx)
	case status.Old != "" && !now.Before(status.OldEnds):
		if err := identity.ForgetOld(r.config.Gateway.Data); err != nil {
			r.log.Warn("the old key can't be removed", "error", err)
			return rollLook
		}
		status = r.look()
	}
	wait := rollLook
	if !status.Due.IsZero() && !now.IsZero() {
		wait = min(wait, status.Due.Sub(now))
	}
	if status.Old != "" {
		wait = min(wait, r.remind(ctx))
	}
	return max(wait, 0)
}

// apart draws once how long an overdue key waits for its turn.
func (r *roller) apart() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waited || r.spread <= 0 {
		return 0
	}
	r.waited = true
	wait := rand.N(r.spread)
	r.tryAt = time.Now().Add(wait)
	return wait
}

func (r *roller) untilTry() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Until(r.tryAt)
}

func (r *roller) try(ctx context.Context) time.Duration {
	if _, err := r.roll(ctx); err != nil {
		return min(max(r.untilTry(), time.Second), rollLook)
	}
	return 0
}

// roll is rollKey, one at a time. It is called for a person, too.
func (r *roller) roll(ctx context.Context) (done KeyRolled, err error) {
	select {
	case r.one <- struct{}{}:
		defer func() { <-r.one }()
	case <-ctx.Done():
		return done, ctx.Err()
	}
	done, err = rollKey(ctx, r.config, r.now())
	if ctx.Err() != nil || errors.Is(err, identity.ErrRolling) || errors.Is(err, errNothingToRoll) {
		return done, err
	}
	r.note(err)
	r.look() // before it counts: who sees the count sees the key
	if err == nil {
		r.log.Info("the gateway has a new key", "key", credential.Thumbprint(done.Key[:]), "old", credential.Thumbprint(done.Old[:]), "old_ends", done.OldEnds)
		r.mu.Lock()
		r.status.Rolled++
		r.mu.Unlock()
	}
	return done, err
}

// note keeps what became of a roll, and logs it where it is new.
func (r *roller) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.failed, r.tries, r.tryAt, r.status.NextTry = "", 0, time.Time{}, time.Time{}
		return
	}
	var said *refusal
	least := time.Duration(0)
	if errors.As(err, &said) {
		least = said.after
	}
	pause := r.postpone(least, maxRollPause)
	known := r.failed == err.Error()
	r.failed, r.status.NextTry = err.Error(), r.tryAt.Round(0)
	if known {
		r.log.Debug("the new key is still not registered", "error", err, "next_try_in", pause)
		return
	}
	r.log.Warn("the new key is not registered: the one in use stays", "error", err, "next_try_in", pause)
}

// postpone sets when the next try is. r.mu is held.
func (r *roller) postpone(least, most time.Duration) time.Duration {
	pause := min(most, rollPause<<min(r.tries, 10)) // 2^9 minutes are above any bound
	pause = max(least, pause/2+rand.N(pause/2))     // those that failed together come one by one
	r.tries++
	r.tryAt = time.Now().Add(pause)
	return pause
}

// remind tells the cloud once more which key took over, where there has been no
// session for a while: one that was restored from a backup knows the old key
// only, and takes the new one from nobody else. It returns when to look again.
func (r *roller) remind(ctx context.Context) time.Duration {
	online := r.online()
	r.mu.Lock()
	began := r.offline
	switch {
	case online && !began.IsZero():
		r.offline, r.tries = time.Time{}, 0
	case !online && began.IsZero():
		r.offline = time.Now()
	}
	r.mu.Unlock()
	if online || began.IsZero() || time.Since(began) < r.patient {
		return r.patient
	}
	err := r.declareAgain(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	pause := r.postpone(0, maxRemindPause)
	if err != nil { // it is offline, as far as anybody knows; the uplink says why
		r.log.Debug("the cloud was not told of the key again", "error", err, "next_try_in", pause)
		return pause
	}
	r.status.Repeated++
	r.log.Info("there is no session: the cloud was told again of this gateway's key", "key", r.status.Thumbprint)
	return pause
}

func (r *roller) declareAgain(ctx context.Context) error {
	select {
	case r.one <- struct{}{}:
		defer func() { <-r.one }()
	case <-ctx.Done():
		return ctx.Err()
	}
	old, err := identity.LoadOld(r.config.Gateway.Data)
	if err != nil {
		return err
	}
	key, err := identity.Load(r.config.Gateway.Data)
	if err != nil {
		return err
	}
	_, err = declare(ctx, r.config, old, key)
	return err
}

// look reads what keys there are, and says when the next one is due.
func (r *roller) look() KeyStatus {
	seen, err := readKeys(r.config.Gateway.Data, r.now())
	u := &r.config.Uplink
	if age := time.Duration(u.KeyMaxAge); age > 0 && u.TokenFile == "" && len(u.URLs) > 0 && !seen.Since.IsZero() {
		seen.Due = seen.Since.Add(age - time.Duration(float64(age/rollShare)*part(seen.Thumbprint)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen.Rolled, seen.Repeated, seen.LastError, seen.NextTry = r.status.Rolled, r.status.Repeated, r.failed, r.status.NextTry
	if err != nil {
		seen.LastError = err.Error()
	}
	r.status = seen
	return seen
}

// part is from 0 to 1, another one for each key, and the same after a restart.
func part(thumbprint string) float64 {
	raw, err := base64.RawURLEncoding.DecodeString(thumbprint)
	if err != nil || len(raw) < 4 {
		return 0
	}
	return float64(binary.BigEndian.Uint32(raw)) / (1 << 32)
}

func (d *Daemon) keyStatus() KeyStatus {
	r := d.out.get().roller
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}
