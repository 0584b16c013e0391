package touchline

import (
	"fmt"
	"io"
	"log/slog"
)

// Logger returns a logger that writes to w as the table [log] says. Its
// settings must have passed Check.
func (c LogConfig) Logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic(fmt.Sprintf("BUG: log level %q passed the check", c.Level))
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
