package cloud

import (
	"context"
	"errors"
	"time"

	"touchline/credential"
	"touchline/wire"
)

// watchAccess ends the sessions of gateways whose token or key was taken away,
// by whichever process, or whose key's time is over, within two intervals. It
// returns when stop is done.
//
// It is level-triggered: each session has the revision of who may speak that
// was known before its pass was checked, and is looked at until its revision
// is the store's. So neither a look that fails nor a session that begins
// meanwhile is forgotten. That a key ends is seen by the clock of this node,
// as at a handshake.
func (in *ingest) watchAccess(stop context.Context) {
	ticker := time.NewTicker(in.timing.access)
	defer ticker.Stop()
	for well := true; ; {
		err := in.lookAgain(stop)
		if err != nil && well && stop.Err() == nil {
			in.log.Error("look who may still speak; it is tried again", "error", err)
		}
		well = err == nil
		select {
		case <-stop.Done():
			return
		case <-ticker.C:
		}
	}
}

func (in *ingest) lookAgain(ctx context.Context) error {
	stop := ctx
	ctx, cancel := context.WithTimeout(ctx, in.timing.ask)
	defer cancel()
	revision, err := in.store.AccessRevision(ctx)
	in.lookAround(stop, revision, err)
	if err != nil {
		return err
	}
	in.revision.Store(revision)
	for _, s := range in.roster.inDoubt(revision, time.Now()) {
		holds, ends, err := in.holds(ctx, s.pass)
		if err != nil {
			return err
		}
		if !holds {
			s.log.Warn("the gateway's credential was taken away, or its time is over")
			s.out.end(farewell{code: wire.CloseUnauthorized, reason: "the credential counts no more"})
		}
		s.passEnds.Store(unixNano(ends))
		s.revision.Store(revision)
	}
	return nil
}

// holds says whether a pass would let its gateway in now, and until when at
// most; the zero time is not known yet.
func (in *ingest) holds(ctx context.Context, p pass) (_ bool, ends time.Time, err error) {
	if p.keyID == "" {
		gateway, err := in.store.GatewayByToken(ctx, p.token)
		if errors.Is(err, ErrUnknownToken) {
			return false, time.Time{}, nil
		}
		return gateway == p.gateway, time.Time{}, err
	}
	keys, err := in.store.HandshakeKeys(ctx, p.gateway)
	now := time.Now()
	for _, k := range keys {
		if k.Counts(now) && credential.Thumbprint(k.Public) == p.keyID {
			return true, k.NotAfter, nil
		}
	}
	return false, time.Time{}, err
}

// inDoubt returns the sessions that were not looked at since a revision, or
// whose pass ends by now.
func (r *roster) inDoubt(revision uint64, now time.Time) (list []*session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		ends := s.passEnds.Load()
		if s.revision.Load() < revision || ends != 0 && ends <= now.UnixNano() {
			list = append(list, s)
		}
	}
	return list
}

// unixNano is t for an atomic; 0 is the zero time.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
