package tracing

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	api "go.opentelemetry.io/otel/trace"
)

// A Block is one block that is followed, in one process. Its spans are the
// stages that it passes, each told when it is over. A nil Block is one that is not
// followed, and its methods do nothing. A Block is used by one goroutine at a time, which
// hands it on with the block.
type Block struct {
	tracer api.Tracer
	ctx    context.Context
	span   api.Span  // nil where it is known by its parent only; see Remote
	waits  time.Time // since when, for its next stage
}

// A Label is a fact of a block or a stage.
type Label = attribute.KeyValue

// String, Int and Bool make labels.
var (
	String = attribute.String
	Int    = attribute.Int64
	Bool   = attribute.Bool
)

// Begin begins the trace of a block that arrived then.
func (t *Tracer) Begin(at time.Time, labels ...Label) *Block {
	if t == nil {
		return nil
	}
	ctx, span := t.tracer.Start(context.Background(), "block", api.WithTimestamp(at), api.WithSpanKind(api.SpanKindServer), api.WithAttributes(labels...))
	return &Block{tracer: t.tracer, ctx: ctx, span: span, waits: at}
}

var traceparent propagation.TraceContext // W3C Trace Context

const parentKey = "traceparent"

// Parent returns what another process goes on from (W3C Trace Context, traceparent);
// "" where the block is not followed.
func (b *Block) Parent() string {
	if b == nil {
		return ""
	}
	carrier := propagation.MapCarrier{}
	traceparent.Inject(b.ctx, carrier)
	return carrier[parentKey]
}

// Remote returns a block that another process follows, from its Parent. It is nil
// where that is empty, damaged, or of a block that is not followed; and it has no stages
// before Resume.
func Remote(parent string) *Block {
	if parent == "" {
		return nil
	}
	ctx := traceparent.Extract(context.Background(), propagation.MapCarrier{parentKey: parent})
	if !api.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	return &Block{ctx: ctx}
}

// Resume goes on with the trace of a Remote block, which came out of a queue then.
func (t *Tracer) Resume(from *Block, at time.Time) *Block {
	if t == nil || from == nil || from.span != nil {
		return nil
	}
	ctx, span := t.tracer.Start(from.ctx, "record", api.WithTimestamp(at), api.WithSpanKind(api.SpanKindConsumer))
	return &Block{tracer: t.tracer, ctx: ctx, span: span, waits: at}
}

// Stage says that a stage began after the block had waited for it, and what it
// was like. The wait is a stage too.
func (b *Block) Stage(name string, began, ended time.Time, labels ...Label) {
	if b == nil || b.span == nil {
		return
	}
	b.child("wait", b.waits, began)
	b.child(name, began, ended, labels...)
	b.waits = ended
}

// Passed is Stage for one that begins where the last one ended.
func (b *Block) Passed(name string, ended time.Time, labels ...Label) {
	if b == nil || b.span == nil {
		return
	}
	b.child(name, b.waits, ended, labels...)
	b.waits = ended
}

func (b *Block) child(name string, from, to time.Time, labels ...Label) {
	_, span := b.tracer.Start(b.ctx, name, api.WithTimestamp(from), api.WithAttributes(labels...))
	span.End(api.WithTimestamp(to))
}

// End ends the trace in this process. problem says what became of the block
// where that is not what was meant; "" where it is.
func (b *Block) End(at time.Time, problem string) {
	if b == nil || b.span == nil {
		return
	}
	if problem != "" {
		b.span.SetStatus(codes.Error, problem)
	}
	b.span.End(api.WithTimestamp(at))
}
