package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"touchline/cloud"
)

// Headers of an atomic batch (NATS ADR-50), whose messages share one sync.
const (
	headerBatch       = "Nats-Batch-Id"
	headerBatchSeq    = "Nats-Batch-Sequence"
	headerBatchCommit = "Nats-Batch-Commit"
)

// maxAtomic is how many messages a batch may have: the server takes 1,000, and
// ingest publishes 512 at a time.
const maxAtomic = 512

// Publish implements cloud.Queue. Each shard has its part of the batch by itself,
// so that one that is full, or has no leader, takes nothing from the others.
func (q *Queue) Publish(ctx context.Context, batch []cloud.Delivery) error {
	if err := q.revive(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*publishTimeout)
	defer cancel()
	parts := map[int]*part{}
	for i := range batch {
		shard := shardOf(batch[i].Gateway, q.opts.Shards)
		m, err := messageOf(&batch[i], q.opts.subject(shard))
		if err != nil {
			return fmt.Errorf("publish block %s/%d: %w", batch[i].Block.Epoch, batch[i].Block.First, err)
		}
		if q.opts.Duplicates == 0 {
			delete(m.Header, nats.MsgIdHdr)
		}
		if parts[shard] == nil {
			parts[shard] = new(part)
		}
		parts[shard].add(m, i)
	}
	var group sync.WaitGroup
	for _, p := range parts {
		group.Go(func() { p.err = q.publishPart(ctx, p.messages) })
	}
	group.Wait()
	return q.outcome(parts, len(batch))
}

// A part is what of a batch goes into one shard.
type part struct {
	messages []*nats.Msg
	of       []int // where they are in the batch
	err      error
}

func (p *part) add(m *nats.Msg, i int) {
	p.messages, p.of = append(p.messages, m), append(p.of, i)
}

// outcome says what became of a batch of n.
func (q *Queue) outcome(parts map[int]*part, n int) error {
	held := make([]bool, n)
	var errs []error
	answered := true
	for _, p := range parts {
		for _, i := range p.of {
			held[i] = p.err == nil
		}
		if p.err != nil {
			errs = append(errs, p.err)
			answered = answered && errors.As(p.err, new(*jetstream.APIError))
		}
	}
	q.noteAnswered(answered)
	if len(errs) > 0 && len(errs) < len(parts) {
		return &cloud.PartlyHeldError{Held: held, Err: errors.Join(errs...)}
	}
	return errors.Join(errs...)
}

// publishPart publishes messages of one subject.
func (q *Queue) publishPart(ctx context.Context, list []*nats.Msg) error {
	if len(list) == 1 {
		return q.publishEach(ctx, list)
	}
	var rest []*nats.Msg
	for some := range slices.Chunk(list, maxAtomic) {
		c, err := q.send(some)
		if err == nil {
			err = c.await(ctx)
		}
		if errors.As(err, new(refusal)) {
			// It has a block that the queue knows, or found no room as a whole: each says for
			// itself then what becomes of it.
			rest = append(rest, some...)
		} else if err != nil {
			return fmt.Errorf("publish to %s: %w", some[0].Subject, err)
		}
	}
	return q.publishEach(ctx, rest)
}

// publishEach publishes messages on their own. One that the queue knows is a success.
func (q *Queue) publishEach(ctx context.Context, list []*nats.Msg) error {
	answers := make([]jetstream.PubAckFuture, 0, len(list))
	for _, m := range list {
		for _, key := range []string{headerBatch, headerBatchSeq, headerBatchCommit} {
			delete(m.Header, key)
		}
		m.Reply = ""
		answer, err := q.js.PublishMsgAsync(m)
		if err != nil {
			return fmt.Errorf("publish to %s: %w", m.Subject, err)
		}
		answers = append(answers, answer)
	}
	for _, answer := range answers {
		select {
		case said := <-answer.Ok():
			if said.Duplicate {
				q.duplicates.Add(1)
			}
		case err := <-answer.Err():
			return fmt.Errorf("publish to %s: %w", answer.Msg().Subject, err)
		case <-ctx.Done():
			return fmt.Errorf("wait for the queue: %w", ctx.Err())
		}
	}
	return nil
}

// A commit is an atomic batch that was sent and not answered yet.
type commit struct {
	messages []*nats.Msg
	answer   *nats.Subscription
}

// batchPatience: a leader that died with half a batch answers nothing, and
// another is elected in seconds.
const batchPatience = 3 * time.Second

// A refusal is an answer of the server that says no.
type refusal struct{ *jetstream.APIError }

// send sends messages of one subject as one batch.
func (q *Queue) send(list []*nats.Msg) (c commit, err error) {
	id := nuid.Next()
	inbox := q.conn.NewRespInbox()
	answer, err := q.conn.SubscribeSync(inbox)
	if err != nil {
		return c, err
	}
	for i, m := range list {
		m.Header[headerBatch] = []string{id}
		m.Header[headerBatchSeq] = []string{strconv.Itoa(i + 1)}
		if i == len(list)-1 {
			m.Header[headerBatchCommit] = []string{"1"}
		}
		m.Reply = inbox
		if err := q.conn.PublishMsg(m); err != nil {
			return c, errors.Join(err, answer.Unsubscribe())
		}
	}
	return commit{list, answer}, nil
}

// await returns nil when the batch is in the stream, and a refusal where it is not at all.
func (c commit) await(ctx context.Context) error {
	defer c.answer.Unsubscribe()
	ctx, cancel := context.WithTimeout(ctx, batchPatience)
	defer cancel()
	for {
		m, err := c.answer.NextMsgWithContext(ctx)
		if err != nil {
			return fmt.Errorf("wait for the queue: %w", err)
		}
		if len(m.Data) == 0 && m.Header.Get("Status") == "" {
			continue // the first of a batch is answered with nothing
		}
		var a struct {
			Error *jetstream.APIError `json:"error"`
			Batch string              `json:"batch"`
			Count int                 `json:"count"`
		}
		switch err := json.Unmarshal(m.Data, &a); {
		case err != nil:
			return fmt.Errorf("read the queue's answer %.80q: %w", m.Data, err)
		case a.Error != nil:
			return refusal{a.Error}
		case a.Count != len(c.messages):
			return fmt.Errorf("the queue has %d messages of a batch of %d", a.Count, len(c.messages))
		}
		return nil
	}
}
