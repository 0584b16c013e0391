package cloud

import (
	"context"
	"errors"
	"time"

	"touchline/credential"
	"touchline/wire"
)

// watchAccess ends the sessions of gateways whose token or key was taken away,
// by whichever process, within two intervals. It returns when stop is done.
//
// It is level-triggered: each session has the revision of who may speak that
// was known before its pass was checked, and is looked at until its revision
// is the store's. So neither a look that fails nor a session that begins
// meanwhile is forgotten.
func (in *ingest) watchAccess(stop context.Context) {
	ticker := time.NewTicker(in.timing.access)
	defer ticker.Stop()
	for well := true; ; {
		select {
		case <-stop.Done():
			return
		case <-ticker.C:
		}
		err := in.lookAgain(stop)
		if err != nil && well && stop.Err() == nil {
			in.log.Error("look who may still speak; it is tried again", "error", err)
		}
		well = err == nil
	}
}

func (in *ingest) lookAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, in.timing.hello)
	defer cancel()
	revision, err := in.store.AccessRevision(ctx)
	if err != nil {
		return err
	}
	in.revision.Store(revision)
	for _, s := range in.roster.passedBefore(revision) {
		holds, err := in.holds(ctx, s.pass)
		if err != nil {
			return err
		}
		if !holds {
			s.log.Warn("the gateway's credential was taken away")
			s.out.end(farewell{code: wire.CloseUnauthorized, reason: "the credential counts no more"})
		}
		s.revision.Store(revision)
	}
	return nil
}

// holds says whether a pass would let its gateway in now.
func (in *ingest) holds(ctx context.Context, p pass) (bool, error) {
	if p.keyID == "" {
		gateway, err := in.store.GatewayByToken(ctx, p.token)
		if errors.Is(err, ErrUnknownToken) {
			return false, nil
		}
		return gateway == p.gateway, err
	}
	keys, err := in.store.HandshakeKeys(ctx, p.gateway)
	now := time.Now()
	for _, k := range keys {
		if k.Counts(now) && credential.Thumbprint(k.Public) == p.keyID {
			return true, nil
		}
	}
	return false, err
}

// passedBefore returns the sessions that were not looked at since a revision.
func (r *roster) passedBefore(revision uint64) (list []*session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		if s.revision.Load() < revision {
			list = append(list, s)
		}
	}
	return list
}
