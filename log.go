package touchline

import (
	"fmt"
	"io"
	"log/slog"
)

// Logger returns a logger that writes to w as the table [log] says. Its
// settings must have passed Check.
func (c LogConfig) Logger(w io.Writer) *slog.Logger { return c.LoggerAt(w, c.SlogLevel()) }

// LoggerAt is Logger with a level that may change while it is in use.
func (c LogConfig) LoggerAt(w io.Writer, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// SlogLevel returns the level, which must have passed Check.
func (c LogConfig) SlogLevel() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic(fmt.Sprintf("BUG: log level %q passed the check", c.Level))
	}
	return level
}
