package cloud

import (
	"slices"
	"sync"
	"time"

	"touchline"
	"touchline/wire"
)

// An outbox is what a session has to say. It is not a queue: each kind of
// message has one place, where what comes later joins or replaces what waits.
// So it is bounded by what the window admits, however slowly the gateway reads,
// and a burst of commits makes one ack. Its methods don't block, but for wait.
type outbox struct {
	// write is run by a goroutine of its own when there is something to take, unless
	// it runs; it calls take until there is nothing, or stop.
	write   func()
	writers sync.WaitGroup // one, while write runs

	mu      sync.Mutex    // covers what follows
	writing bool          // write runs, and will call take again; or it was stopped
	letters *letters      // nil is none
	room    chan struct{} // closed when less is in flight; nil where nobody waits for it
	early   *wire.Window  // came before the welcome, and takes its window's place
	greeted bool
	ended   bool     // nothing is added behind the farewell
	last    farewell // once ended
	// In flight is what arrived and was not put into an ack that is being
	// written; so it also bounds the acks that a gateway leaves unread.
	flyingBytes, flyingBlocks int
	waitingBytes              int // of flyingBytes, those whose ack waits in letters
	waitingBlocks             int
}

// letters are messages, in the order in which they are written.
type letters struct {
	welcome  *wire.Welcome
	window   *wire.Window
	accepted []wire.EpochRanges // and not stored
	stored   []wire.EpochRanges
	lost     []uint64
	clock    []wire.ClockOffset
	resend   []wire.Resend
	goaway   *wire.Goaway // the gateway ends the session when what is in flight has landed
	pong     []byte       // nil is none
	ping     bool
	farewell *farewell
}

// A farewell is how a session ends: what is said in the close frame, and in
// a goaway before it. With a code of 0 nothing is said, since nobody listens.
// It is the error with which the parts of the reader end the session.
type farewell struct {
	code   int
	reason string
	goaway *wire.Goaway
}

func (f farewell) Error() string { return f.reason }

// maxUnconfirmed bounds the confirmations of lost messages that a gateway
// leaves unread: 1,024 × 17 digits are 17 KB of an ack. It bounds those of
// clock messages too: 1,024 × 78 bytes are 80 KB.
const maxUnconfirmed = 1024

func newOutbox(write func()) *outbox { return &outbox{write: write} }

// arrived counts a block against the window, and says whether it was within
// it. The largest window counts, not the one offered last, which the gateway
// may not know yet; and one block may overrun it, since one may be in flight
// whatever its size. Where it was not, room is closed when less is in flight.
func (o *outbox) arrived(b *wire.Block, full wire.Window) (room <-chan struct{}, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.flyingBytes > full.Bytes || o.flyingBlocks > full.Blocks {
		if o.room == nil {
			o.room = make(chan struct{})
		}
		return o.room, false
	}
	o.flyingBytes += len(b.Data)
	o.flyingBlocks++
	return nil, true
}

// forget takes a block out of the window without an ack.
func (o *outbox) forget(b *wire.Block) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flyingBytes -= len(b.Data)
	o.flyingBlocks--
	o.signalRoom()
}

// signalRoom wakes who waits for room. o.mu is held.
func (o *outbox) signalRoom() {
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// addAccepted gives the window back; what has a notice of being stored follows.
func (o *outbox) addAccepted(b *wire.Block) {
	o.post(func(l *letters) {
		addRange(&l.accepted, b.Epoch, b.Range())
		o.waitingBytes += len(b.Data)
		o.waitingBlocks++
	})
}

// repeatAccepted says again what is accepted and not stored.
func (o *outbox) repeatAccepted(list []wire.EpochRanges) {
	o.post(func(l *letters) { addAll(&l.accepted, list) })
}

// maxNotices bounds the ranges that notices have put into an ack which is not
// written yet. With the 1,024 that a window may bring, in an epoch each, the two lists of the
// ack have 1,536 + 512 of 106 bytes: 217 KB of MaxMessageBytes (256 KiB).
const maxNotices = 512

// addStoredRanges says what is stored of what was accepted, and has given its
// window back then. It returns false where the gateway leaves too much unread.
func (o *outbox) addStoredRanges(list []wire.EpochRanges) (ok bool) {
	o.post(func(l *letters) {
		if ok = rangesIn(l.stored)+rangesIn(list) <= maxNotices; ok {
			addAll(&l.stored, list)
		}
	})
	return ok
}

func rangesIn(list []wire.EpochRanges) (n int) {
	for i := range list {
		n += len(list[i].Ranges)
	}
	return n
}

func addAll(list *[]wire.EpochRanges, more []wire.EpochRanges) {
	for _, er := range more {
		for _, r := range er.Ranges {
			addRange(list, er.Epoch, r)
		}
	}
}

func (o *outbox) addStored(b *wire.Block) {
	o.post(func(l *letters) {
		addRange(&l.stored, b.Epoch, b.Range())
		o.waitingBytes += len(b.Data)
		o.waitingBlocks++
	})
}

func addRange(list *[]wire.EpochRanges, epoch touchline.Epoch, r touchline.Range) {
	for i := len(*list) - 1; i >= 0; i-- {
		if (*list)[i].Epoch == epoch {
			(*list)[i].Ranges.Add(r)
			return
		}
	}
	*list = append(*list, wire.EpochRanges{Epoch: epoch, Ranges: touchline.Ranges{r}})
}

func (o *outbox) addResend(b *wire.Block) {
	o.post(func(l *letters) {
		i := slices.IndexFunc(l.resend, func(r wire.Resend) bool { return r.Epoch == b.Epoch })
		if i < 0 {
			l.resend = append(l.resend, wire.Resend{Epoch: b.Epoch})
			i = len(l.resend) - 1
		}
		l.resend[i].Ranges.Add(b.Range())
	})
}

// addLost confirms a lost message. It returns false where the gateway leaves
// too many confirmations unread.
func (o *outbox) addLost(id uint64) (ok bool) {
	o.post(func(l *letters) {
		if ok = len(l.lost) < maxUnconfirmed; ok {
			l.lost = append(l.lost, id)
		}
	})
	return ok
}

// addClock confirms a clock message, with the limit of addLost.
func (o *outbox) addClock(c wire.ClockOffset) (ok bool) {
	o.post(func(l *letters) {
		if ok = len(l.clock) < maxUnconfirmed; ok {
			l.clock = append(l.clock, c)
		}
	})
	return ok
}

func (o *outbox) setWelcome(w *wire.Welcome) {
	o.post(func(l *letters) {
		if o.early != nil {
			w.Window = *o.early
		}
		l.welcome, o.greeted, o.early = w, true, nil
	})
}

// setWindow replaces the window. Nothing is said before the welcome.
func (o *outbox) setWindow(w wire.Window) {
	o.post(func(l *letters) {
		if o.greeted {
			l.window = &w
		} else {
			o.early = &w
		}
	})
}

// setGoaway asks the gateway to leave; the session goes on until it has.
func (o *outbox) setGoaway(g wire.Goaway) { o.post(func(l *letters) { l.goaway = &g }) }

// setPong answers the newest ping; RFC 6455, section 5.5.3 lets the older ones go.
func (o *outbox) setPong(data string) {
	o.post(func(l *letters) { l.pong = append([]byte{}, data...) })
}

// setPing has a ping sent.
func (o *outbox) setPing() { o.post(func(l *letters) { l.ping = true }) }

// end says how the session ends; the first to say so is heard.
func (o *outbox) end(f farewell) {
	o.post(func(l *letters) {
		l.farewell = &f
		o.ended, o.last = true, f
	})
}

// parting returns what end was called with first.
func (o *outbox) parting() farewell {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

func (o *outbox) post(add func(*letters)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	if o.letters == nil {
		o.letters = new(letters)
	}
	add(o.letters)
	if !o.writing {
		o.writing = true
		o.writers.Go(o.write)
	}
}

// nudge has the writer look again.
func (o *outbox) nudge() { o.post(func(*letters) {}) }

// take empties the outbox; the window gets back what the ack in it has. Where
// it returns nil there was nothing, and what comes next has write run anew.
func (o *outbox) take() *letters {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.letters
	o.letters = nil
	o.writing = l != nil
	o.flyingBytes -= o.waitingBytes
	o.flyingBlocks -= o.waitingBlocks
	o.waitingBytes, o.waitingBlocks = 0, 0
	o.signalRoom()
	return l
}

// stop lets go of what waits: write does not run again.
func (o *outbox) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.letters, o.writing = nil, true
}

// wait returns when write has ended for good. It is called behind end, after
// which write is started no more.
func (o *outbox) wait() { o.writers.Wait() }

// messages returns the control messages among the letters.
func (l *letters) messages(now time.Time) []wire.Message {
	var list []wire.Message
	if l.welcome != nil {
		list = append(list, l.welcome)
	}
	if l.window != nil {
		list = append(list, &wire.NewWindow{Window: *l.window})
	}
	if len(l.accepted) > 0 || len(l.stored) > 0 || len(l.lost) > 0 || len(l.clock) > 0 {
		accepted := l.accepted
		addAll(&accepted, l.stored) // what is stored is accepted
		list = append(list, &wire.Ack{Accepted: accepted, Stored: l.stored, Lost: l.lost, Clock: l.clock, Time: now})
	}
	for i := range l.resend {
		list = append(list, &l.resend[i])
	}
	switch {
	case l.farewell != nil && l.farewell.goaway != nil:
		list = append(list, l.farewell.goaway)
	case l.goaway != nil:
		list = append(list, l.goaway)
	}
	return list
}
