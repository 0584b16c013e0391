package uplink

import (
	"crypto/sha1"
	"encoding/base64"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// acceptKey is the answer to a Sec-WebSocket-Key (RFC 6455, section 1.3).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func TestGoaway_LandsWhatIsInFlightAndComesBackInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		sessions := make(chan *cloudSession, 2)
		w.cloud.session = func(s *cloudSession) bool { sessions <- s; return false }
		w.cloud.window = wire.Window{Bytes: 3000, Blocks: 3}
		w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
			if s.number == 1 {
				return silent
			}
			return store
		}
		list := blocks(touchline.NewEpoch(), 1, 10, 1, 1000)
		w.source.add(list...)
		o := w.options()
		o.BackoffBase, o.BackoffCap = time.Second, time.Minute
		u := w.uplink(o)
		w.start(u)
		s := <-sessions
		synctest.Wait()
		s.send(&wire.Goaway{Reason: "drain", ReconnectAfter: 90_000})
		time.Sleep(time.Second)
		if st := u.Stats(); st.State != Connected || st.InFlight.Blocks != 3 {
			t.Fatalf("a second after goaway: %s with %d in flight, want what is in flight to land", st.State, st.InFlight.Blocks)
		}
		landed := []wire.EpochRanges{{Epoch: list[0].Epoch, Ranges: touchline.Ranges{{First: 1, Last: 3}}}}
		for i := range 3 {
			w.cloud.record(&wire.FrameBlock{Block: list[i]})
		}
		s.send(&wire.Ack{Accepted: landed, Stored: landed})
		synctest.Wait()
		st := u.Stats()
		if st.State != Waiting || st.Blocks != 3 || w.source.left() != 7 {
			t.Fatalf("%s after %d blocks, %d left: want the session to end once all has landed", st.State, st.Blocks, w.source.left())
		}
		if wait := st.NextTry.Sub(st.Since); wait < 90*time.Second || wait > 91*time.Second {
			t.Errorf("next try in %v, want 90 s and a little", wait)
		}
		if len(w.cloud.saw().closes) != 1 || w.cloud.saw().closes[0].Code != 1000 {
			t.Errorf("close frames %v, want one with 1000", w.cloud.saw().closes)
		}
		time.Sleep(2 * time.Minute)
		if w.source.left() != 0 {
			t.Errorf("%d blocks are left after the reconnect", w.source.left())
		}
	})
}

func TestGoaway_DoesNotWaitForEver(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
			if s.number == 1 {
				s.send(&wire.Goaway{Reason: "overload", ReconnectAfter: 365 * 24 * 3600 * 1000})
				return silent
			}
			return store
		}
		w.source.add(blocks(touchline.NewEpoch(), 1, 1, 1, 1000)...)
		u := w.uplink(w.options())
		w.start(u)
		time.Sleep(drainGrace + time.Second)
		st := u.Stats()
		if st.State != Waiting {
			t.Fatalf("%s, and the cloud went away", st.State)
		}
		if wait := st.NextTry.Sub(st.Since); wait < maxFloor || wait > maxFloor+time.Second {
			t.Errorf("next try in %v, want %v: a year is a mistake", wait, maxFloor)
		}
	})
}

func TestGoaway_AddressIsUsedOnce(t *testing.T) {
	w, other := newWorld(t), (*testCloud)(nil)
	other = newTestCloud(t, w.bell)
	w.cloud.session = func(s *cloudSession) bool {
		if s.number > 1 {
			return false
		}
		if hello, ok := s.hello(); ok && s.welcome(hello) {
			s.send(&wire.Goaway{Reason: "rebalance", Address: other.url()})
			s.serve()
		}
		return true
	}
	u := w.uplink(w.options())
	w.start(u)
	awaitStats(t, u, "at the other cloud", func(st Stats) bool {
		return st.State == Connected && st.URL == other.url()+wire.UplinkPath
	})
	other.dropAll()
	awaitStats(t, u, "back home", func(st Stats) bool {
		return st.State == Connected && st.URL == w.cloud.url()+wire.UplinkPath
	})
	if st := u.Stats(); st.Store != "store-1" || st.Sessions != 3 {
		t.Errorf("stats %+v, want three sessions", st)
	}
}

func TestGoaway_NeverMovesTheTokenToClearText(t *testing.T) {
	to, _ := parseURL("wss://cloud.example.org")
	s := &session{to: to}
	for address, ok := range map[string]bool{
		"": true, "wss://b.example.org": true, "https://b.example.org": true,
		"ws://b.example.org": false, "http://b.example.org": false, "gopher://b": false, "wss://u:p@b": false,
	} {
		if _, err := s.otherAddress(address); (err == nil) != ok {
			t.Errorf("otherAddress(%q): error %v, want ok %v", address, err, ok)
		}
	}
}

// A node that stops, or lacks its record store, may say so before it has greeted.
func TestGoaway_BeforeWelcomeIsNoBreach(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.session = func(s *cloudSession) bool {
			if s.number > 1 {
				return false
			}
			if _, ok := s.hello(); ok {
				s.send(&wire.Goaway{Reason: "drain", ReconnectAfter: 2000})
				s.write(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseServiceRestart, "this node stops"))
			}
			return true
		}
		w.source.add(blocks(touchline.NewEpoch(), 1, 1, 1, 1000)...)
		o := w.options()
		o.BackoffBase, o.BackoffCap = time.Second, time.Minute
		u := w.uplink(o)
		w.start(u)
		synctest.Wait()
		st := u.Stats()
		if wait := st.NextTry.Sub(st.Since); st.State != Waiting || wait < 2*time.Second || wait > 8*time.Second {
			t.Fatalf("%s for %v: %s", st.State, wait, st.LastError)
		}
		time.Sleep(10 * time.Second)
		if w.source.left() != 0 {
			t.Error("the block is left after the reconnect")
		}
	})
}
