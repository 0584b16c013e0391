package cloud_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"touchline/cloud"
	"touchline/cloud/tracing"
	"touchline/internal/otlptest"
)

// stagesOf returns the names of the spans of each block, sorted, by its first number.
func stagesOf(t *testing.T, spans []otlptest.Span) map[int64][][]string {
	t.Helper()
	list := map[int64][][]string{}
	for _, root := range spans {
		if root.Name != "block" {
			continue
		}
		names := []string{}
		for _, s := range spans {
			if string(s.TraceId) == string(root.TraceId) && s.Span != root.Span {
				names = append(names, s.Name)
				if string(s.ParentSpanId) != string(root.SpanId) || s.StartTimeUnixNano > s.EndTimeUnixNano || s.StartTimeUnixNano < root.StartTimeUnixNano {
					t.Errorf("the span %s is of another parent, or begins before it, or ends before it began", s.Name)
				}
			}
		}
		slices.Sort(names)
		first, ok := root.Label("touchline.first").(int64)
		if !ok || root.Label("touchline.gateway") != "arena" {
			t.Errorf("the labels of a block are %v", root.Attributes)
		}
		list[first] = append(list[first], names)
	}
	return list
}

func TestTraces_FollowABlockFromSocketToAck(t *testing.T) {
	collector := otlptest.New(t)
	tracer, err := tracing.New(t.Context(), tracing.Options{Endpoint: collector.Endpoint(), Ratio: 1}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	store := newMemory("arena")
	hold := make(chan struct{})
	var attempts atomic.Int64
	store.beforeRecord = func(ctx context.Context, _ []cloud.Delivery) error {
		<-hold
		if attempts.Add(1) == 1 {
			return errors.Join(cloud.ErrUnavailable, errors.New("a moment"))
		}
		return nil
	}
	opts := options()
	opts.Tracer = tracer
	n := start(t, opts, store)
	g, _ := n.join("arena")
	sent := blocks(t, 3)
	g.send(sent...)
	g.send(sent[1]) // while its first copy waits
	eventually(t, "the repeat is dropped", func() bool { return n.server.Stats().RepeatsWaiting == 1 })
	close(hold)
	g.stored(sent...)
	g.send(sent[0]) // after it is stored
	g.stored(sent[0])
	n.end()
	if err := tracer.Close(context.Background()); err != nil {
		t.Fatal(err)
	}

	whole := []string{"ack", "commit", "receive", "wait"}
	want := map[int64][][]string{1: {whole, whole}, 11: {{}, whole}, 21: {whole}}
	got := stagesOf(t, collector.Spans())
	slices.SortFunc(got[11], func(a, b []string) int { return len(a) - len(b) })
	for first, stages := range want {
		if !slices.EqualFunc(got[first], stages, slices.Equal) {
			t.Errorf("the block from %d on has the stages %v, want %v", first, got[first], stages)
		}
	}
	if len(got) != len(want) {
		t.Errorf("blocks are %v", got)
	}
	if st := n.server.Stats(); st.Spans != 21 || st.SpansExported != 21 {
		t.Errorf("%d spans ended and %d were exported, want 4 blocks with 5 each and one with none but its own", st.Spans, st.SpansExported)
	}
}

// A session that ends takes the traces of what it did not acknowledge along.
func TestTraces_EndWithTheSession(t *testing.T) {
	collector := otlptest.New(t)
	tracer, err := tracing.New(t.Context(), tracing.Options{Endpoint: collector.Endpoint(), Ratio: 1}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	store := newMemory("arena")
	hold := make(gate)
	store.beforeRecord = hold.wait
	opts := options()
	opts.Tracer = tracer
	n := start(t, opts, store)
	g, _ := n.join("arena")
	sent := blocks(t, 2)
	g.send(sent...)
	eventually(t, "the blocks wait", func() bool { return n.server.Stats().QueueBlocks == 2 })
	g.conn.Close()
	eventually(t, "the session is over", func() bool { return n.server.Stats().Connections == 0 })
	close(hold)
	eventually(t, "the blocks are stored", func() bool { return n.server.Stats().BlocksStored == 2 })
	n.end()
	if err := tracer.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if commits, roots := collector.Spans("commit"), collector.Spans("block"); len(commits) != 2 || len(roots) != 2 {
		t.Errorf("%d blocks have %d commits, want 2 each", len(roots), len(commits))
	}
}
