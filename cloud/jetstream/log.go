package jetstream

import (
	"fmt"
	"log/slog"
)

// serverLog has the embedded server log where everything else does. Its notices
// are of no interest to people who did not ask for a server.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l serverLog) Warnf(format string, args ...any)   { l.log.Warn(fmt.Sprintf(format, args...)) }
func (l serverLog) Errorf(format string, args ...any)  { l.log.Error(fmt.Sprintf(format, args...)) }
func (l serverLog) Fatalf(format string, args ...any)  { l.log.Error(fmt.Sprintf(format, args...)) }
func (l serverLog) Debugf(string, ...any)              {}
func (l serverLog) Tracef(string, ...any)              {}
