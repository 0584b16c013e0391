package sensors

import (
	"context"
	"log/slog"
)

// mochiHandler takes mochi's log. What matters of it is logged here in the
// gateway's own words, with a limit on how often; so all but errors is for
// debugging, and whole packets are left out.
type mochiHandler struct{ next slog.Handler }

func (h *mochiHandler) level(l slog.Level) slog.Level {
	if l >= slog.LevelError {
		return l
	}
	return slog.LevelDebug
}

func (h *mochiHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.next.Enabled(ctx, h.level(l))
}

func (h *mochiHandler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, h.level(r.Level), r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "packet" && a.Key != "pk" && a.Key != "will" {
			out.AddAttrs(a)
		}
		return true
	})
	return h.next.Handle(ctx, out)
}

func (h *mochiHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &mochiHandler{h.next.WithAttrs(attrs)}
}

func (h *mochiHandler) WithGroup(name string) slog.Handler {
	return &mochiHandler{h.next.WithGroup(name)}
}
