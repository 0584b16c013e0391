package cloud

import (
	"context"
	"slices"
	"sync"
	"time"

	"touchline"
	"touchline/wire"
)

// accepted knows what of one gateway the queue holds, or is about to, and the
// record store is not known to have. Its zero value is ready.
//
// A notice may overtake the queue's own answer. It waits for that then: stored
// gives window back too, and the gateway would fill what this node counts still.
type accepted struct {
	mu    sync.Mutex // covers what follows
	list  []acceptedEpoch
	since time.Time     // when the first of them was accepted; zero where none is
	asked time.Time     // the record store, last
	wait  time.Duration // until it is asked again
}

type acceptedEpoch struct {
	epoch  touchline.Epoch
	flying touchline.Ranges // on their way into the queue
	early  touchline.Ranges // of flying, those that are stored already
	held   touchline.Ranges // accepted
}

// maxAcceptedRanges bounds what one session remembers: 1,024 × 16 bytes are
// 16 KiB. Blocks come in order and ranges join, so a gateway has a handful;
// of one that leaves holes the oldest epoch is forgotten, and the gateway sends
// again what it is not told of.
const maxAcceptedRanges = 1024

func (a *accepted) of(epoch touchline.Epoch) *acceptedEpoch {
	for i := range a.list {
		if a.list[i].epoch == epoch {
			return &a.list[i]
		}
	}
	return nil
}

// await is called before a block may be on its way into the queue.
func (a *accepted) await(b *wire.Block) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.of(b.Epoch)
	if e == nil {
		a.list = append(a.list, acceptedEpoch{epoch: b.Epoch})
		e = &a.list[len(a.list)-1]
	}
	e.flying.Add(b.Range())
	ranges := 0
	for i := range a.list {
		e := &a.list[i]
		ranges += 1 + len(e.flying) + len(e.early) + len(e.held)
	}
	if ranges > maxAcceptedRanges {
		a.list = slices.Delete(a.list, 0, 1)
	}
}

// accept is called when the queue holds a block. It returns true where that is
// known to be stored already.
func (a *accepted) accept(b *wire.Block, now time.Time) (stored bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.of(b.Epoch)
	if e == nil {
		return false // forgotten
	}
	block := touchline.Ranges{b.Range()}
	stored = e.early.Contains(b.Range())
	e.flying, e.early = without(e.flying, block), without(e.early, block)
	if stored {
		e.held = without(e.held, block)
	} else {
		e.held.Add(b.Range())
	}
	a.tidy(now)
	return stored
}

// stored takes out what is stored, and returns what of it the gateway can be
// told now.
func (a *accepted) stored(list []wire.EpochRanges) (news []wire.EpochRanges) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, er := range list {
		ranges := er.Ranges
		if e := a.of(er.Epoch); e != nil {
			ranges = without(er.Ranges, e.flying)
			e.early.AddAll(without(er.Ranges, ranges))
			e.held = without(e.held, ranges)
		}
		if len(ranges) > 0 {
			news = append(news, wire.EpochRanges{Epoch: er.Epoch, Ranges: ranges})
		}
	}
	a.tidy(time.Time{})
	return news
}

// tidy lets go of what is over: an idle gateway costs nothing. a.mu is held.
func (a *accepted) tidy(now time.Time) {
	held := slices.ContainsFunc(a.list, func(e acceptedEpoch) bool { return len(e.held) > 0 })
	switch {
	case !held:
		a.since, a.asked, a.wait = time.Time{}, time.Time{}, 0
	case a.since.IsZero():
		a.since = now
	}
	a.list = slices.DeleteFunc(a.list, func(e acceptedEpoch) bool { return len(e.held)+len(e.flying) == 0 })
	if len(a.list) == 0 {
		a.list = nil
	}
}

// without returns the numbers of s that are not in t.
func without(s, t touchline.Ranges) (rest touchline.Ranges) {
	for _, r := range s {
		rest.AddAll(t.Missing(r))
	}
	return rest
}

// held returns what is accepted.
func (a *accepted) held() (list []wire.EpochRanges) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.list {
		if len(e.held) > 0 {
			list = append(list, wire.EpochRanges{Epoch: e.epoch, Ranges: e.held.Clone()})
		}
	}
	return list
}

// holds says whether the queue accepted all of a block.
func (a *accepted) holds(b *wire.Block) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.of(b.Epoch)
	return e != nil && e.held.Contains(b.Range())
}

// epochs returns those of which something is accepted.
func (a *accepted) epochs() (list []touchline.Epoch) {
	for _, er := range a.held() {
		list = append(list, er.Epoch)
	}
	return list
}

// due says whether it is time to ask the record store, and counts that as done.
func (a *accepted) due(now time.Time, t *timing) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	from := a.since
	if !a.asked.IsZero() {
		from = a.asked
	}
	if a.wait == 0 {
		a.wait = t.reask
	}
	if from.IsZero() || now.Sub(from) < a.wait {
		return false
	}
	a.asked, a.wait = now, min(2*a.wait, t.reaskMax)
	return true
}

// hearStored takes a notice of what is stored of the session's gateway.
func (s *session) hearStored(list []wire.EpochRanges) {
	s.say(s.due.stored(list))
}

// say tells the gateway what is stored. Where it leaves too much unread for that
// it sends the block again when it has no patience more.
func (s *session) say(news []wire.EpochRanges) {
	if len(news) > 0 && s.in.opts.Tracer != nil {
		s.follows.Load().heardStored(news)
	}
	if len(news) > 0 && !s.out.addStoredRanges(news) {
		s.log.Debug("a notice of what is stored finds no place, since acks are not read")
	}
}

// maxQuestions bounds what is asked of the record store in one look, which a
// store that has an outage behind it must bear beside its backlog.
const maxQuestions = 64

// watchAccepted asks the record store for what is accepted and was not heard
// of for long, until ctx is done: a notice may get lost. It also says again
// what is accepted and not stored, as touchline.v1 wants it.
func (in *ingest) watchAccepted(ctx context.Context) {
	if in.queue == nil {
		return
	}
	ticker := time.NewTicker(min(in.timing.look, in.timing.reask))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			in.askStored(ctx, now)
		}
	}
}

func (in *ingest) askStored(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, in.timing.ask)
	defer cancel()
	asked, answers := 0, !in.outage.away.Load()
	sessions := in.roster.greeted()
	in.regularise(sessions, now)
	for _, s := range sessions {
		if asked == maxQuestions {
			return
		}
		if !s.due.due(now, &in.timing) {
			continue
		}
		s.out.repeatAccepted(s.due.held())
		if !answers {
			continue // and is asked when it does
		}
		asked++
		stored, err := in.store.Stored(ctx, s.gateway, s.due.epochs())
		if err != nil {
			answers = false
			s.log.Debug("the record store does not say what is stored; it is asked again", "error", err)
			continue
		}
		if news := overlap(s.due.held(), stored); len(news) > 0 {
			in.stats.noticesLost.Add(1)
			s.say(s.due.stored(news))
		}
	}
}

// overlap returns what of held is stored: the store may have a thousand ranges more.
func overlap(held, stored []wire.EpochRanges) (list []wire.EpochRanges) {
	for _, h := range held {
		for _, er := range stored {
			if er.Epoch != h.Epoch {
				continue
			}
			if both := without(h.Ranges, without(h.Ranges, er.Ranges)); len(both) > 0 {
				list = append(list, wire.EpochRanges{Epoch: h.Epoch, Ranges: both})
			}
		}
	}
	return list
}

// greeted returns the sessions that said hello, one for each gateway.
func (r *roster) greeted() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*session, 0, len(r.newest))
	for _, s := range r.newest {
		list = append(list, s)
	}
	return list
}
