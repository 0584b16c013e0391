package jetstream

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"touchline/wire"
)

// Notices of what is stored go over core NATS: a subject for each gateway, to
// which the node listens that has its session. They are not kept: who misses one
// asks the record store.

// maxNotices is how many wait to be heard; one more is lost.
const maxNotices = 4096

type hearer struct {
	stored       func([]wire.EpochRanges)
	subscription *nats.Subscription
}

// notice is the subject of a gateway's notices.
func (o *Options) notice(gateway string) string {
	return "touchline.stored." + o.Store + "." + token(gateway)
}

// token is a gateway as a part of a subject: ids have letters, digits and -._ only, of which the point
// would divide the subject.
func token(gateway string) string { return strings.ReplaceAll(gateway, ".", "~") }

func gatewayOf(subject string) string {
	return strings.ReplaceAll(subject[strings.LastIndexByte(subject, '.')+1:], "~", ".")
}

// Tell implements cloud.Source.
func (q *Queue) Tell(gateway string, stored []wire.EpochRanges) error {
	data, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("write notice: %w", err)
	}
	return q.conn.Publish(q.opts.notice(gateway), data)
}

// Hear implements cloud.Queue. Notices come while Run runs.
func (q *Queue) Hear(gateway string, stored func([]wire.EpochRanges)) (silence func(), err error) {
	// All share a channel and its reader: a goroutine for each would cost an idle gateway 4 KB.
	subscription, err := q.conn.ChanSubscribe(q.opts.notice(gateway), q.notices)
	if err != nil {
		return nil, fmt.Errorf("subscribe to what is stored: %w", err)
	}
	h := &hearer{stored, subscription}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hearers[gateway] = append(q.hearers[gateway], h)
	return func() { q.silence(gateway, h) }, nil
}

func (q *Queue) silence(gateway string, h *hearer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hearers[gateway] = slices.DeleteFunc(q.hearers[gateway], func(other *hearer) bool { return other == h })
	if len(q.hearers[gateway]) == 0 {
		delete(q.hearers, gateway)
	}
	_ = h.subscription.Unsubscribe() // fails where the connection is closed, and all is silent
}

// Run hands notices on until ctx is done, and then returns nil.
func (q *Queue) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-q.notices:
			q.notice(m)
		}
	}
}

func (q *Queue) notice(m *nats.Msg) {
	var stored []wire.EpochRanges
	if err := json.Unmarshal(m.Data, &stored); err != nil {
		q.log.Warn("a notice of what is stored can't be read; the record store is asked", "subject", m.Subject, "error", err)
		return
	}
	gateway := gatewayOf(m.Subject)
	q.mu.Lock()
	hearers := slices.Clone(q.hearers[gateway])
	q.mu.Unlock()
	for _, h := range hearers {
		h.stored(stored)
	}
}
