package systemd

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Assignments of sd_notify(3).
const (
	Ready    = daemon.SdNotifyReady
	Stopping = daemon.SdNotifyStopping
	Watchdog = daemon.SdNotifyWatchdog
)

// maxStatusBytes is what `systemctl status` shows in a line or two.
const maxStatusBytes = 300

// Notify sends assignments to the service manager, in one message.
func Notify(assignments ...string) error {
	if _, err := daemon.SdNotify(false, strings.Join(assignments, "\n")); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}

// Status is the line that `systemctl status` shows.
func Status(format string, args ...any) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r // what is no UTF-8 becomes U+FFFD
	}, fmt.Sprintf(format, args...))
	if len(text) > maxStatusBytes {
		text = strings.ToValidUTF8(text[:maxStatusBytes], "") + "…"
	}
	return "STATUS=" + text
}

// Reloading begins a reload, which Ready ends. systemd wants to know since when
// (Type=notify-reload, from version 253 on).
func Reloading() string {
	return strings.TrimSuffix("RELOADING=1\n"+daemon.SdNotifyMonotonicUsec(), "\n")
}

// Extend asks for more time to start or to stop: d from now on.
func Extend(d time.Duration) string {
	return "EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(d.Microseconds(), 10)
}

// WatchdogInterval is how long the service manager waits for a sign of life
// before it ends this process; 0 where it does not.
func WatchdogInterval() (time.Duration, error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("read interval of the watchdog: %w", err)
	}
	return interval, nil
}

// Watched says whether a service manager listens.
func Watched() bool { return os.Getenv("NOTIFY_SOCKET") != "" }
