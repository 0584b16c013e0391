package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// lookBack leaves the session when what is preferred works again: the first
// address, or a WebSocket where requests have to do. It tries with an upgrade
// beside the session, each ReturnAfter, so that nothing is given up for what
// does not work. It returns when ctx ends, or nothing is better.
func (s *session) lookBack(ctx context.Context) error {
	first := s.u.urls[0]
	if *s.to == *first && !s.requests {
		return nil
	}
	tick := time.NewTicker(s.u.opts.ReturnAfter)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.u.try(ctx, first); err != nil {
			s.log.Debug("what is preferred does not work yet", "url", shown(first), "error", err)
			continue
		}
		s.leave(first)
	}
}

// try upgrades at an address and lets go of it again.
func (u *Uplink) try(ctx context.Context, to *url.URL) error {
	l, err := u.dialSocket(ctx, to)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.SayClose(websocket.CloseNormalClosure, "the address works", time.Now().Add(closeGrace))
}

// leave ends the session for a better address, as a goaway would.
func (s *session) leave(first *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.goaway == nil {
		s.goaway = &failure{
			err:  fmt.Errorf("back to a WebSocket at %s, which works again", shown(first)),
			code: websocket.CloseNormalClosure, leave: true,
		}
		s.drainBy = time.Now().Add(drainGrace)
		s.handover.interrupt()
	}
	wake(s.wakeWriter)
}

// spoken says whether anything came from the cloud.
func (s *session) spoken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

// checkStore compares the record store of a welcome with the one known. The
// first one is kept. Another one is a cloud that was set up anew, or another
// cloud: "stored" of before says nothing there, and stored there nothing here.
func (u *Uplink) checkStore(id string) error {
	u.mu.Lock()
	known := u.store
	if known == "" {
		u.store, u.status.Store = id, id
	}
	if known == "" || known == id {
		u.status.Offered = ""
	} else {
		u.status.Offered = id
	}
	u.mu.Unlock()
	switch {
	case known == "":
		u.keepStore(id)
		return nil
	case known == id:
		return nil
	}
	return u.anotherStore(id, known)
}

func (u *Uplink) anotherStore(id, known string) *failure {
	return &failure{
		err: fmt.Errorf("the cloud's record store is %s, and this gateway delivers to %s: nothing is sent. If that is meant, because the cloud was set up anew or this gateway moves to another one, say `touchline uplink accept-store %s`",
			id, known, id),
		code: websocket.CloseNormalClosure, floor: u.opts.refusedFor(),
	}
}

// maxStoreShown bounds what is shown of an id that a refusal names.
const maxStoreShown = 256

// refusedByAnother returns the failure for a 401 to a credential that was for
// the store we deliver to, from a cloud that has another one; nil for any
// other. Where no store is known nothing is learnt from a refusal.
func (u *Uplink) refusedByAnother(h http.Header) *failure {
	id := h.Get(wire.HeaderStore)
	if id == "" || len(id) > maxStoreShown || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil
	}
	u.mu.Lock()
	known, delivers := u.store, u.status.State == Connected
	u.mu.Unlock()
	if known == "" || known == id {
		return nil
	}
	if delivers { // this is lookBack: nobody has to agree to anything
		return u.anotherStore(id, known)
	}
	if err := u.checkStore(id); err != nil {
		return asFailure(err)
	}
	return nil // it was accepted in between
}

func (u *Uplink) keepStore(id string) {
	if u.opts.KeepStore == nil {
		return
	}
	if err := u.opts.KeepStore(id); err != nil {
		u.log.Warn("the id of the cloud's record store can't be kept: after a restart any store is taken", "error", err)
	}
}

// AcceptStore makes id the record store that is delivered to; "" is the one
// that the cloud shows now. All that is held is sent there. It is durable
// when nil is returned.
func (u *Uplink) AcceptStore(id string) (string, error) {
	u.mu.Lock()
	if id == "" {
		id = u.status.Offered
	}
	u.mu.Unlock()
	if id == "" {
		return "", errors.New("the cloud shows no other record store than the one known: name the id that is to be accepted")
	}
	if u.opts.KeepStore != nil {
		if err := u.opts.KeepStore(id); err != nil {
			return "", fmt.Errorf("keep the id of the record store: %w", err)
		}
	}
	u.mu.Lock()
	u.store, u.status.Store, u.status.Offered = id, id, ""
	u.mu.Unlock()
	u.log.Info("another record store is accepted", "store", id)
	wake(u.retry)
	return id, nil
}
