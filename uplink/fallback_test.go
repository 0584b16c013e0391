package uplink

import (
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// Where a middlebox refuses upgrades the same blocks go as requests, each once,
// in the face of answers that get lost.
func TestFallback_DeliversWhereUpgradesAreRefused(t *testing.T) {
	for name, refuse := range map[string]func(w http.ResponseWriter) bool{
		"403": func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusForbidden); return true },
		"426": func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusUpgradeRequired); return true },
		"200": func(w http.ResponseWriter) bool { w.Write([]byte("<html>")); return true },
		"cut": func(w http.ResponseWriter) bool { panic(http.ErrAbortHandler) },
	} {
		for _, lossy := range []bool{false, true} {
			if lossy && name != "403" {
				continue
			}
			w := newWorld(t)
			b := newBridge(t, w.cloud)
			b.refuse = refuse
			var mu sync.Mutex
			rnd := rand.New(rand.NewPCG(3, 4))
			if lossy {
				b.lose = func() bool { mu.Lock(); defer mu.Unlock(); return rnd.IntN(3) == 0 }
			}
			epoch := touchline.NewEpoch()
			list := blocks(epoch, 1, 100, 10, 20_000)
			w.source.add(list...)
			o := w.options()
			o.URLs = []string{b.url()}
			u := w.uplink(o)
			stop := w.start(u)
			w.bell.await(t, name+": the backlog", func() bool { return w.cloud.has(list) })
			fresh := blocks(epoch, 1001, 3, 10, 100)
			for i := range fresh {
				w.source.add(fresh[i])
				w.bell.await(t, name+": a new block", func() bool { return w.source.left() == 0 })
			}
			st := u.Stats()
			if !st.Requests || st.State != Connected || st.Sessions != 1 {
				t.Errorf("%s: %s in session %d, by requests: %v", name, st.State, st.Sessions, st.Requests)
			}
			b.mu.Lock()
			upgrades, lost := b.upgrades, b.lost
			b.mu.Unlock()
			if upgrades != fallbackAfter {
				t.Errorf("%s: %d upgrades were tried, want %d", name, upgrades, fallbackAfter)
			}
			if lossy && lost == 0 {
				t.Error("no answer was lost: this test shows nothing")
			}
			stop()
			if closes := w.cloud.saw().closes; !lossy && (len(closes) != 1 || closes[0].Code != 1001) {
				t.Errorf("%s: the cloud was told %v, want that the gateway stops", name, closes)
			}
			w.cloud.close()
		}
	}
}

func TestFallback_GoesBackToAWebSocket(t *testing.T) {
	w := newWorld(t)
	b := newBridge(t, w.cloud)
	open := false
	b.refuse = func(w http.ResponseWriter) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !open {
			w.WriteHeader(http.StatusForbidden)
		}
		return !open
	}
	o := w.options()
	o.URLs = []string{b.url()}
	o.ReturnAfter = 20 * time.Millisecond
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "by requests", func(st Stats) bool { return st.State == Connected && st.Requests })
	list := blocks(touchline.NewEpoch(), 1, 10, 10, 1000)
	w.source.add(list...)
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	b.mu.Lock()
	open = true
	b.mu.Unlock()
	awaitStats(t, u, "by a WebSocket again", func(st Stats) bool { return st.State == Connected && !st.Requests })
}

// What the cloud itself refuses is no middlebox's doing.
func TestFallback_IsNotForTheCloudsOwnRefusals(t *testing.T) {
	w := newWorld(t)
	b := newBridge(t, w.cloud)
	b.refuse = func(w http.ResponseWriter) bool {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	o := w.options()
	o.URLs = []string{b.url()}
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "several dials", func(st Stats) bool { return st.Dials > 3*fallbackAfter })
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.requests > b.upgrades {
		t.Errorf("%d requests beside %d upgrades", b.requests-b.upgrades, b.upgrades)
	}
}

// A session that the cloud forgot, or closed, is followed by another.
func TestFallback_ForgottenSessionIsFollowedByANewOne(t *testing.T) {
	w := newWorld(t)
	b := newBridge(t, w.cloud)
	o := w.options()
	o.URLs = []string{b.url()}
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
	b.mu.Lock()
	for id := range b.sessions {
		b.sessions[id].conn.Close()
		b.sessions[id].wg.Wait()
		delete(b.sessions, id)
	}
	b.mu.Unlock()
	w.source.add(blocks(touchline.NewEpoch(), 1, 3, 10, 1000)...)
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	if st := u.Stats(); st.Sessions < 2 {
		t.Errorf("%d sessions", st.Sessions)
	}
}

func TestURLs_BackToTheFirst(t *testing.T) {
	w := newWorld(t)
	first := newBridge(t, w.cloud)
	second := newBridge(t, w.cloud)
	down := true
	first.refuse = func(w http.ResponseWriter) bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		if down {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return down
	}
	second.refuse = func(http.ResponseWriter) bool { return false }
	o := w.options()
	o.URLs = []string{first.url(), second.url()}
	o.ReturnAfter = 20 * time.Millisecond
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "the second", func(st Stats) bool {
		return st.State == Connected && st.URL == second.url()+wire.UplinkPath
	})
	sessions := u.Stats().Sessions
	first.mu.Lock()
	before := first.upgrades
	first.mu.Unlock()
	awaitStats(t, u, "the first address is tried", func(Stats) bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		return first.upgrades > before+2
	})
	if st := u.Stats(); st.Sessions != sessions {
		t.Error("a session was given up for an address that does not work")
	}
	first.mu.Lock()
	down = false
	first.mu.Unlock()
	awaitStats(t, u, "the first", func(st Stats) bool {
		return st.State == Connected && st.URL == first.url()+wire.UplinkPath
	})
	w.source.add(blocks(touchline.NewEpoch(), 1, 3, 10, 1000)...)
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
}
