package uplink

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"touchline/wire"
)

// A credential is for the store that is delivered to, so a cloud with another
// one refuses it before there is a welcome that would say so.
func TestStore_ARefusalByAnotherOneWaitsForAPerson(t *testing.T) {
	w := newWorld(t)
	var accepted atomic.Bool
	w.cloud.refuse = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer for store-1" {
			r.Header.Set("Authorization", "Bearer secret-token")
			return false
		}
		rw.Header().Set(wire.HeaderStore, "store-1")
		rw.Header().Set("WWW-Authenticate", `Bearer realm="touchline-cloud", error="invalid_token"`)
		rw.WriteHeader(http.StatusUnauthorized)
		return true
	}
	o := w.options()
	o.Token = nil
	o.Credential = func(context.Context, Nonce) (string, error) {
		if accepted.Load() {
			return "for store-1", nil
		}
		return "for store-0", nil
	}
	o.KnownStore = "store-0"
	o.KeepStore = func(id string) error { accepted.Store(id == "store-1"); return nil }
	o.BackoffBase, o.BackoffCap = time.Hour, time.Hour
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "refused", func(st Stats) bool { return st.State == StoreChanged })
	if st := u.Stats(); st.Offered != "store-1" || st.Store != "store-0" || !contains(st.LastError, "touchline uplink accept-store store-1") {
		t.Errorf("stats %+v", st)
	}
	if id, err := u.AcceptStore(""); err != nil || id != "store-1" {
		t.Fatalf("accepted %q: %v", id, err)
	}
	awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
}

func TestRefusedByAnother_LearnsNothingElse(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct{ known, said string }{
		"no store is known": {"", "store-1"},
		"the same store":    {"store-1", "store-1"},
		"none is named":     {"store-0", ""},
		"a line of a log":   {"store-0", "a\tlevel=ERROR"},
	} {
		o := w.options()
		o.KnownStore = c.known
		o.KeepStore = func(id string) error { t.Errorf("%s: %q was kept", name, id); return nil }
		u := w.uplink(o)
		if f := u.refusedByAnother(http.Header{wire.HeaderStore: {c.said}}); f != nil {
			t.Errorf("%s: %v", name, f)
		}
		if st := u.Stats(); st.Store != c.known || st.Offered != "" {
			t.Errorf("%s: stats %+v", name, st)
		}
	}
}

// The first address has another store, the second has the one that is known:
// the session there delivers, and a look back at the first is no reason to ask
// a person to change that.
func TestStore_AnotherOneAtTheFirstAddressIsNotOffered(t *testing.T) {
	w := newWorld(t)
	first := newBridge(t, w.cloud)
	first.refuse = func(rw http.ResponseWriter) bool {
		rw.Header().Set(wire.HeaderStore, "store-9")
		rw.WriteHeader(http.StatusUnauthorized)
		return true
	}
	o := w.options()
	o.URLs = []string{first.url(), w.cloud.url()}
	o.KnownStore = "store-1"
	o.ReturnAfter = 5 * time.Millisecond
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "the second", func(st Stats) bool { return st.State == Connected })
	tried := func() int {
		first.mu.Lock()
		defer first.mu.Unlock()
		return first.upgrades
	}
	before := tried()
	awaitStats(t, u, "the first address is tried", func(st Stats) bool {
		if st.Offered != "" {
			t.Fatalf("while it delivers to %s, a person is asked to accept %s", st.Store, st.Offered)
		}
		return tried() > before+3
	})
	if _, err := u.AcceptStore(""); err == nil {
		t.Error("there was something to accept")
	}
}
