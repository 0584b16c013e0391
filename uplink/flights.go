package uplink

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"

	"touchline"
	"touchline/wire"
)

// maxUnstored bounds the blocks of a session that were sent and are not yet
// stored, however large a window the cloud gives: at 96 bytes for a flight and
// 48 in the two queues it is 2.3 MB. Their data is not kept.
const maxUnstored = 16384

// maxLaunches bounds order, which keeps what was accepted behind an older block
// that was not: 16 bytes each, 1 MB.
const maxLaunches = 4 * maxUnstored

// flightState says where a block is between us and the record store.
type flightState uint8

const (
	inFlight flightState = iota // sent; holds window until accepted
	accepted                    // the cloud has it, its record store does not yet
	again                       // to be read from the buffer and sent once more
)

// A flight is one block that was sent in this session and is not stored.
type flight struct {
	epoch   touchline.Epoch
	nums    touchline.Range
	bytes   int
	paced   int // of bytes, those that count in pace: of a block in parts, its last part
	state   flightState
	lane    wire.Lane // in which it counts while it is in flight
	sends   int       // how often it was sent
	damaged int       // how often the cloud asked for it because of its CRC
	sent    uint64    // number of its last launch
	at      time.Time // when it came into this state
}

// flights knows every block between us and the record store, and what of the
// window they hold. It is not safe for concurrent use: the session's mutex
// covers it.
type flights struct {
	window wire.Window
	pace   pace // told what of the backlog lands

	bytes, blocks int // in flight: sent and not accepted
	unstored      int // blocks in byEpoch

	byEpoch map[touchline.Epoch][]*flight // each by number, ascending
	order   []launch                      // in order of sending; begins with the oldest in flight
	sent    uint64                        // launches so far

	oldestSince time.Time // when order[0] became the oldest; its patience runs from here
	pausedSince time.Time // zero while the window is open
}

// A launch is one sending of a block. It is over when the flight has left
// inFlight or was launched again.
type launch struct {
	f      *flight
	number uint64
}

func newFlights() *flights {
	return &flights{byEpoch: make(map[touchline.Epoch][]*flight)}
}

// paused says whether the cloud wants nothing at all.
func (fs *flights) paused() bool { return fs.window.Bytes <= 0 || fs.window.Blocks <= 0 }

// fits says whether a block of n bytes may be sent now. One block may always
// be in flight, however small the window, unless it is a pause.
func (fs *flights) fits(n int, resend bool) bool {
	if fs.paused() || len(fs.order) >= maxLaunches || fs.unstored >= maxUnstored && !resend {
		return false
	}
	return fs.blocks == 0 || fs.blocks < fs.window.Blocks && n <= fs.window.Bytes-fs.bytes
}

// spare says whether a block of n bytes leaves the window room for live ones:
// an eighth of one that is not small, and of what may be unstored.
func (fs *flights) spare(n int) bool {
	bytes, blocks := fs.window.Bytes, fs.window.Blocks-fs.window.Blocks/8
	if bytes >= 4*frameTarget {
		bytes -= bytes / 8
	}
	return fs.blocks == 0 || fs.blocks < blocks && n <= bytes-fs.bytes && fs.unstored < maxUnstored-maxUnstored/8
}

// setWindow takes over what the cloud said. Patience stands still in a pause.
func (fs *flights) setWindow(w wire.Window, now time.Time) {
	was := fs.paused()
	fs.window = wire.Window{Bytes: max(w.Bytes, 0), Blocks: max(w.Blocks, 0)}
	switch is := fs.paused(); {
	case is && !was:
		fs.pausedSince = now
	case was && !is && !fs.pausedSince.IsZero():
		fs.oldestSince = fs.oldestSince.Add(now.Sub(fs.pausedSince))
		fs.pausedSince = time.Time{}
	}
}

// find returns the flight of exactly this block, or nil.
func (fs *flights) find(epoch touchline.Epoch, first uint64) *flight {
	list := fs.byEpoch[epoch]
	if i := firstAt(list, first); i < len(list) && list[i].nums.First == first {
		return list[i]
	}
	return nil
}

// launch notes that b is being sent, in the lane in which it counts. It returns false where it should not be:
// it is on its way or accepted already, or a resend was asked for and the
// block was stored meanwhile.
func (fs *flights) launch(b *wire.Block, resend bool, lane wire.Lane, now time.Time) bool {
	f := fs.find(b.Epoch, b.First)
	switch {
	case f == nil && resend, f != nil && f.state != again:
		return false
	case f == nil:
		f = &flight{epoch: b.Epoch, nums: b.Range()}
		list := fs.byEpoch[b.Epoch]
		fs.byEpoch[b.Epoch] = slices.Insert(list, firstAt(list, b.First), f)
		fs.unstored++
	}
	f.state, f.at, f.bytes = inFlight, now, len(b.Data)
	f.sends++
	fs.sent++
	f.sent = fs.sent
	if len(fs.order) == 0 {
		fs.oldestSince = now
	}
	fs.order = append(fs.order, launch{f, f.sent})
	f.lane, f.paced = lane, f.bytes
	fs.pace.launched(lane, f.paced)
	fs.bytes += f.bytes
	fs.blocks++
	return true
}

// accept gives back the window of the blocks within r and returns how many
// these were.
func (fs *flights) accept(epoch touchline.Epoch, r touchline.Range, now time.Time) int {
	n := 0
	list := fs.byEpoch[epoch]
	for i := firstAt(list, r.First); i < len(list) && list[i].nums.Last <= r.Last; i++ {
		if f := list[i]; f.state == inFlight {
			fs.land(f, accepted, now)
			n++
		}
	}
	fs.trim(now)
	return n
}

// store forgets the blocks within r and returns how many of them were in
// flight, and how many samples all of them have.
func (fs *flights) store(epoch touchline.Epoch, r touchline.Range, now time.Time) (landed int, samples uint64) {
	list := fs.byEpoch[epoch]
	from := firstAt(list, r.First)
	to := from
	for ; to < len(list) && list[to].nums.Last <= r.Last; to++ {
		f := list[to]
		samples += f.nums.Count()
		if f.state == inFlight {
			landed++
		}
		fs.land(f, accepted, now)
	}
	if from == to {
		return 0, 0
	}
	fs.unstored -= to - from
	if list = slices.Delete(list, from, to); len(list) == 0 {
		delete(fs.byEpoch, epoch)
	} else {
		fs.byEpoch[epoch] = list
	}
	fs.trim(now)
	return landed, samples
}

// within returns the flights of which r has any number.
func (fs *flights) within(epoch touchline.Epoch, r touchline.Range) []*flight {
	list := fs.byEpoch[epoch]
	from := sort.Search(len(list), func(i int) bool { return list[i].nums.Last >= r.First })
	to := sort.Search(len(list), func(i int) bool { return list[i].nums.First > r.Last })
	return list[from:max(from, to)]
}

// recall takes f out of the air, to be read and sent again.
func (fs *flights) recall(f *flight, now time.Time) {
	fs.land(f, again, now)
	fs.trim(now)
}

// forget drops f: the buffer no longer has it.
func (fs *flights) forget(f *flight, now time.Time) {
	fs.store(f.epoch, f.nums, now)
}

// inherit takes over what of old is not stored, for counting only: nothing of
// it is in flight here.
func (fs *flights) inherit(old *flights) {
	for epoch, list := range old.byEpoch {
		for _, f := range list {
			if fs.unstored >= maxUnstored {
				return
			}
			mine := fs.byEpoch[epoch]
			i := firstAt(mine, f.nums.First)
			if i < len(mine) && mine[i].nums.First == f.nums.First {
				continue
			}
			f.state = again
			fs.byEpoch[epoch] = slices.Insert(mine, i, f)
			fs.unstored++
		}
	}
}

// late returns the accepted blocks whose store timeout is over. It doubles
// with each sending, up to 16 times, so that a record store that is away for
// hours doesn't get everything each minute.
func (fs *flights) late(timeout time.Duration, now time.Time) []*flight {
	var late []*flight
	for _, list := range fs.byEpoch {
		for _, f := range list {
			if f.state == accepted && now.Sub(f.at) >= timeout<<min(f.sends-1, 4) {
				late = append(late, f)
			}
		}
	}
	// In order of sending, so that the cloud gets them as it got them first.
	slices.SortFunc(late, func(a, b *flight) int { return cmp.Compare(a.sent, b.sent) })
	return late
}

// oldest returns the block that is longest in flight, and since when that one
// is the oldest: a slow link that goes on delivering has the whole patience
// for each block. ok is false while nothing is in flight or the window is
// paused.
func (fs *flights) oldest() (f *flight, since time.Time, ok bool) {
	if len(fs.order) == 0 || fs.paused() {
		return nil, time.Time{}, false
	}
	return fs.order[0].f, fs.oldestSince, true
}

// land moves f to another state and gives its window back if it held any.
func (fs *flights) land(f *flight, to flightState, now time.Time) {
	if f.state == inFlight {
		fs.bytes -= f.bytes
		fs.blocks--
		if to == accepted && f.paced > 0 {
			fs.pace.arrived(f.lane, f.paced, f.at, now)
		} else {
			fs.pace.left(f.lane, f.paced)
		}
		f.paced = 0
		if fs.bytes < 0 || fs.blocks < 0 {
			panic(fmt.Sprintf("BUG: %d bytes in %d blocks in flight", fs.bytes, fs.blocks))
		}
	}
	f.state, f.at = to, now
}

// trim drops the launches that are over from the front of order. Those behind
// an older one stay until that one is accepted, or ends the session by not
// being accepted in time.
func (fs *flights) trim(now time.Time) {
	n := 0
	for n < len(fs.order) && (fs.order[n].f.state != inFlight || fs.order[n].f.sent != fs.order[n].number) {
		n++
	}
	if n == 0 {
		return
	}
	fs.order = slices.Delete(fs.order, 0, n)
	fs.oldestSince = now
	if !fs.pausedSince.IsZero() {
		fs.pausedSince = now // the new oldest has lost no patience yet
	}
}

// firstAt returns where the first flight is that begins at or after first.
func firstAt(list []*flight, first uint64) int {
	if n := len(list); n > 0 && list[n-1].nums.First < first { // the usual case: at the end
		return n
	}
	return sort.Search(len(list), func(i int) bool { return list[i].nums.First >= first })
}
