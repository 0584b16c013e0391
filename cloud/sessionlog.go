package cloud

import (
	"context"
	"log/slog"
)

// A sessionLog is a logger with the gateway, its address and, once it has one,
// the number of a session. It makes that when something is logged: a
// slog.Logger with them would take 270 bytes of each idle session.
type sessionLog struct{ s *session }

// Debug, Info, Warn and Error are those of slog.Logger.
func (l sessionLog) Debug(message string, args ...any) { l.log(slog.LevelDebug, message, args) }
func (l sessionLog) Info(message string, args ...any)  { l.log(slog.LevelInfo, message, args) }
func (l sessionLog) Warn(message string, args ...any)  { l.log(slog.LevelWarn, message, args) }
func (l sessionLog) Error(message string, args ...any) { l.log(slog.LevelError, message, args) }

func (l sessionLog) log(level slog.Level, message string, args []any) {
	logger := l.s.in.log
	if !logger.Enabled(context.Background(), level) {
		return
	}
	logger = logger.With("gateway", l.s.gateway, "remote", l.s.remote)
	if n := l.s.logged.Load(); n > 0 {
		logger = logger.With("session", n)
	}
	logger.Log(context.Background(), level, message, args...)
}
