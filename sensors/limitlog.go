package sensors

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// logInterval is how often one kind of trouble is logged: a sensor that sends
// garbage for an hour writes 720 lines, not a million.
const logInterval = 5 * time.Second

// limitedLog logs what bad input causes, at most once an interval for each
// message, and says how many lines it left out. Messages are constants, so
// there are few.
type limitedLog struct {
	logger *slog.Logger

	mu   sync.Mutex // covers last and left out
	last map[string]*quieted
}

type quieted struct {
	at      time.Time
	leftOut int
}

func newLimitedLog(logger *slog.Logger) *limitedLog {
	return &limitedLog{logger: logger, last: make(map[string]*quieted)}
}

// warn logs msg, which must be a constant, unless it did so a moment ago.
func (l *limitedLog) warn(msg string, attrs ...slog.Attr) {
	l.mu.Lock()
	q := l.last[msg]
	now := time.Now()
	if q == nil {
		q = &quieted{}
		l.last[msg] = q
	} else if now.Sub(q.at) < logInterval {
		q.leftOut++
		l.mu.Unlock()
		return
	}
	leftOut := q.leftOut
	*q = quieted{at: now}
	l.mu.Unlock()
	if leftOut > 0 {
		attrs = append(attrs, slog.Int("left_out", leftOut))
	}
	l.logger.LogAttrs(context.Background(), slog.LevelWarn, msg, attrs...)
}
