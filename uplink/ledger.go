package uplink

import (
	"context"
	"fmt"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

const (
	// ackEvery bounds how often the source is told: each time it may be a
	// transaction with a sync, and what comes in between is one more range.
	ackEvery = 50 * time.Millisecond
	// maxPending bounds the ranges that wait for the source: 16 bytes each,
	// 256 KiB, besides the ack that exceeds it (at most 50,000 ranges in
	// wire.MaxMessageBytes).
	maxPending = 16384
	// maxLostOpen bounds the lost messages that wait for confirmation.
	maxLostOpen = 64
)

// A ledger holds what the source has yet to learn, and what the cloud may know.
// The session's mutex covers it.
type ledger struct {
	stored map[touchline.Epoch]touchline.Ranges // for Source.Ack
	ranges int                                  // in stored
	lost   []uint64                             // for Source.Ack

	// welcome has what the cloud had stored before this session. It is as
	// large as one message can be.
	welcome map[touchline.Epoch]touchline.Ranges
	// named has the epochs that hello named, in its order.
	named []touchline.Epoch
	// horizon is the highest number of each epoch that the cloud can have:
	// what was held at hello and what was read since. Anything above it is
	// a mistake of the cloud, and must not make the buffer forget a sample.
	horizon map[touchline.Epoch]uint64
	// announced has when each open lost record was sent; at most maxLostOpen.
	announced map[uint64]time.Time
	// clocks has when each correction that is not confirmed was sent; at
	// most maxClocksOpen.
	clocks map[touchline.Clock]time.Time
}

func newLedger() ledger {
	return ledger{
		stored:    make(map[touchline.Epoch]touchline.Ranges),
		welcome:   make(map[touchline.Epoch]touchline.Ranges),
		horizon:   make(map[touchline.Epoch]uint64),
		announced: make(map[uint64]time.Time),
	}
}

// addWelcome notes what the cloud had before this session.
func (l *ledger) addWelcome(list []wire.EpochRanges) {
	for _, er := range list {
		set := l.welcome[er.Epoch]
		set.AddAll(er.Ranges)
		l.welcome[er.Epoch] = set
	}
	l.addStored(list)
}

// addStored notes what the cloud calls stored, as far as it can be true.
func (l *ledger) addStored(list []wire.EpochRanges) {
	for _, er := range list {
		horizon, known := l.horizon[er.Epoch]
		if !known {
			continue
		}
		set := l.stored[er.Epoch]
		l.ranges -= len(set)
		for _, r := range er.Ranges {
			if r.First <= horizon {
				set.Add(touchline.Range{First: r.First, Last: min(r.Last, horizon)})
			}
		}
		l.ranges += len(set)
		if len(set) > 0 {
			l.stored[er.Epoch] = set
		}
	}
}

// addLost notes which of our announcements are confirmed, and returns how many.
func (l *ledger) addLost(ids []uint64) int {
	n := 0
	for _, id := range ids {
		if _, ok := l.announced[id]; ok {
			delete(l.announced, id)
			l.lost = append(l.lost, id)
			n++
		}
	}
	return n
}

func (l *ledger) full() bool { return l.ranges > maxPending }

// answered returns what welcome says of each epoch that hello named, those of
// which the cloud has nothing included.
func (l *ledger) answered() []wire.EpochRanges {
	list := make([]wire.EpochRanges, 0, len(l.named))
	for _, e := range l.named {
		list = append(list, wire.EpochRanges{Epoch: e, Ranges: l.welcome[e].Clone()})
	}
	return list
}

// knowsStored says whether the cloud had b before this session, or has said
// since that it has, and the source is yet to learn it.
func (l *ledger) knowsStored(b *wire.Block) bool {
	return l.welcome[b.Epoch].Contains(b.Range()) || l.stored[b.Epoch].Contains(b.Range())
}

// mayStore notes that b is about to be sent.
func (l *ledger) mayStore(b *wire.Block) {
	l.horizon[b.Epoch] = max(l.horizon[b.Epoch], b.Last())
}

// keepLedger tells the source what the cloud has stored and confirmed, and the
// cloud what the buffer has lost. It returns when the reader has, after the
// last ack was handed on, or when the source fails.
func (s *session) keepLedger(ctx context.Context) error {
	select {
	case <-s.readDone:
		return s.flushLedger()
	case <-s.welcomed:
	}
	tick := time.NewTicker(s.patience() / 2) // each heartbeat
	defer tick.Stop()
	s.announce(time.Now())
	for {
		select {
		case <-s.readDone:
			return s.flushLedger()
		case <-tick.C:
			s.announce(time.Now())
		case <-s.wakeLedger:
			if err := s.flushLedger(); err != nil {
				return err
			}
			sleep(ctx, ackEvery)
		}
	}
}

// flushLedger hands what is pending to the source.
func (s *session) flushLedger() error {
	s.mu.Lock()
	l := &s.ledger
	var stored []wire.EpochRanges
	for _, e := range sortedEpochs(l.stored) {
		stored = append(stored, wire.EpochRanges{Epoch: e, Ranges: l.stored[e]})
	}
	lost := l.lost
	clear(l.stored)
	l.ranges, l.lost = 0, nil
	s.mu.Unlock()
	if len(stored) == 0 && len(lost) == 0 {
		return nil
	}
	if err := s.source.Ack(stored, lost); err != nil {
		// Nothing is lost: welcome says it again.
		return &failure{err: fmt.Errorf("acknowledge in buffer: %w", err), code: websocket.CloseInternalServerErr}
	}
	if len(lost) > 0 {
		s.announceLost(time.Now()) // there may be more than fitted
	}
	return nil
}

// announce says what the cloud has to be told besides blocks.
func (s *session) announce(now time.Time) {
	s.announceClocks(now)
	s.announceLost(now)
}

// announceLost puts lost records that are due into the outbox: those never
// announced in this session, and those not confirmed within StoreTimeout.
func (s *session) announceLost(now time.Time) {
	_, lost := s.source.Held()
	s.mu.Lock()
	defer s.mu.Unlock()
	lost = lost[:min(len(lost), maxLostOpen)]
	open := make(map[uint64]time.Time, len(lost))
	for i := range lost {
		at, ok := s.ledger.announced[lost[i].ID]
		if !ok || now.Sub(at) >= s.u.opts.StoreTimeout {
			if !s.sayLost(&lost[i]) {
				continue
			}
			at = now
		}
		open[lost[i].ID] = at
	}
	s.ledger.announced = open
	wake(s.wakeWriter)
}

// sayLost puts one announcement into the outbox, if it has room. The caller
// holds s.mu.
func (s *session) sayLost(l *wire.Lost) bool {
	if len(s.outbox.messages) >= maxMessages {
		return false
	}
	data, err := wire.MarshalMessage(l)
	if err != nil || len(data) > wire.MaxMessageBytes {
		s.log.Error("a record of lost samples can't be announced", "id", l.ID, "bytes", len(data), "error", err)
		return false
	}
	s.outbox.messages = append(s.outbox.messages, data)
	s.u.count.lostSaid.Add(1)
	return true
}
