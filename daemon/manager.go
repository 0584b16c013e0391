package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"touchline/config"
	"touchline/systemd"
	"touchline/uplink"
)

const (
	// Which stall is worth a restart? A loop of ours that does not turn is a
	// defect, and a restart is what helps: it loses nothing. A disk that does
	// not answer is no hang at first: an SD card that collects its garbage takes
	// tens of seconds, and a process that waits for it can't even be killed. After
	// minutes, though, opening the file anew is all that is left to try. The
	// uplink reads the disk, too.
	loopPatience = 30 * time.Second // above buffer.MaxCommitInterval, and six turns of a listener
	diskPatience = 5 * time.Minute

	// lookEvery is how often the loops are looked at, and statusEvery how often
	// the status is told: the line says how much comes in, and nobody reads faster.
	lookEvery   = 5 * time.Second
	statusEvery = 10 * time.Second

	// workTime is how long the service manager waits for the next sign of
	// work. Between two a salvage reads a block, or commits 8 MiB: seconds of
	// a slow SD card. At its end all blocks are counted, eight a page: 8 GiB of
	// 20 KiB each are 50,000 pages, half a minute of 1,500 reads a second.
	workTime = 2 * time.Minute
	// signEvery bounds how often it is told.
	signEvery = 5 * time.Second
)

// stillOpening returns a function that tells the service manager, if there is
// one, that the gateway is opening a large buffer and makes progress. Without
// it TimeoutStartSec would end a salvage, time and again.
func stillOpening() func() {
	var last time.Time
	return func() {
		if now := time.Now(); last.IsZero() || now.Sub(last) >= signEvery {
			last = now
			_ = systemd.Notify(systemd.Extend(workTime), systemd.Status("Taking blocks out of a database that was set aside")) // nobody listens: nobody waits
		}
	}
}

// A loop is one of those that the gateway lives by. seen returns how often it
// has turned, and for how long the disk has kept it.
type loop struct {
	name    string
	patient time.Duration
	seen    func() (turns uint64, disk time.Duration, running bool)

	turns uint64    // as of the last look that saw another number
	at    time.Time // of that look
}

// look returns for how long the loop has hung, 0 where it has not.
func (l *loop) look(now time.Time) time.Duration {
	turns, disk, running := l.seen()
	if l.at.IsZero() || turns != l.turns || !running {
		l.turns, l.at = turns, now
		return 0
	}
	patient := l.patient
	if disk > 0 {
		patient = max(patient, diskPatience)
	}
	if still := now.Sub(l.at); still > patient {
		return still
	}
	return 0
}

// A manager talks to the service manager while the gateway runs. It says
// WATCHDOG=1 only as long as every loop turns, by the counters that the loops
// themselves advance.
type manager struct {
	loops   []*loop
	status  func() string
	log     *slog.Logger
	every   time.Duration
	hanging string // what hangs, as it was logged last
}

func (d *Daemon) newManager() (*manager, error) {
	watchdog, err := systemd.WatchdogInterval()
	if err != nil {
		return nil, err
	}
	m := &manager{status: d.line, log: d.logger, every: lookEvery}
	if watchdog > 0 {
		m.every = min(m.every, watchdog/4) // three may be late
	}
	m.loops = append(m.loops, &loop{name: "the commit loop", patient: loopPatience, seen: func() (uint64, time.Duration, bool) {
		turns, disk := d.buffer.Pulse()
		return turns, disk, true
	}})
	for _, l := range d.ports.list {
		m.loops = append(m.loops, &loop{name: "the listener of " + l.setting, patient: loopPatience, seen: func() (uint64, time.Duration, bool) { return l.turns.Load(), 0, true }})
	}
	m.loops = append(m.loops, &loop{name: "the uplink", patient: diskPatience, seen: func() (uint64, time.Duration, bool) {
		turns, running := d.uplinkTurns()
		return turns, 0, running
	}})
	return m, nil
}

// run says READY, and goes on talking until ctx ends.
func (m *manager) run(ctx context.Context) error {
	m.say(systemd.Ready, m.line())
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	told := time.Now()
	for {
		select {
		case <-ctx.Done():
			m.say(systemd.Stopping, systemd.Status("Stopping"))
			return nil
		case now := <-tick.C:
			was := m.hanging
			var words []string
			if m.turning(now) {
				words = append(words, systemd.Watchdog)
			}
			if now.Sub(told) >= statusEvery || m.hanging != was {
				told = now
				words = append(words, m.line())
			}
			m.say(words...)
		}
	}
}

// turning says whether all loops do, and logs when that changes.
func (m *manager) turning(now time.Time) bool {
	var hang []string
	for _, l := range m.loops {
		if still := l.look(now); still > 0 {
			hang = append(hang, l.name)
		}
	}
	text := strings.Join(hang, ", ")
	switch {
	case text == m.hanging:
	case text == "":
		m.log.Warn("what hung goes on", "what", m.hanging)
	default:
		m.log.Error("the gateway hangs: the service manager is told no more that it lives, and restarts it", "what", text)
	}
	m.hanging = text
	return text == ""
}

func (m *manager) line() string {
	if m.hanging != "" {
		return systemd.Status("HANGS: %s does not go on; the watchdog restarts the gateway", m.hanging)
	}
	return systemd.Status("%s", m.status())
}

func (m *manager) say(words ...string) {
	if len(words) == 0 || !systemd.Watched() {
		return
	}
	if err := systemd.Notify(words...); err != nil {
		m.log.Debug("the service manager does not hear", "error", err)
	}
}

// line is the gateway in one line, for a person who types `systemctl status`:
// trouble comes first.
func (d *Daemon) line() string {
	s := d.Status()
	var parts []string
	if s.Reload.Error != "" {
		parts = append(parts, "SETTINGS NOT RELOADED (see the log)")
	} else if n := len(s.Reload.Restart); n > 0 {
		parts = append(parts, "restart for "+strings.Join(s.Reload.Restart, ", "))
	}
	b := &s.Buffer
	_, stalled := d.buffer.Pulse()
	if trouble := bufferTrouble(b, stalled); trouble != "" {
		parts = append(parts, trouble)
	}
	connections := int64(0)
	for _, t := range s.Sensors.Transports {
		connections += t.Connections
	}
	parts = append(parts, fmt.Sprintf("%d sensors (%d connections), %.0f samples/s", len(s.Sensors.Seen), connections, s.Sensors.SamplesPerSecond))
	waits := "nothing waits"
	if b.Samples > 0 {
		waits = fmt.Sprintf("%d samples wait (%s, oldest %s)", b.Samples, config.Size(b.Bytes).Short(),
			time.Duration(b.OldestAgeSeconds*float64(time.Second)).Round(time.Second))
	}
	parts = append(parts, waits, d.cloudLine(&s.Uplink))
	return strings.Join(parts, "; ")
}

// stallSaid is when a disk that does not answer is spoken of: a slow sync takes
// no more than seconds.
const stallSaid = 10 * time.Second

// bufferTrouble is what keeps sensors from being acknowledged, "" where nothing
// does. stalled is for how long the disk has not answered.
func bufferTrouble(b *BufferStatus, stalled time.Duration) string {
	switch {
	case b.State == "error":
		return "DISK: " + b.LastError
	case stalled >= stallSaid:
		return fmt.Sprintf("DISK: it has not answered for %s, and sensors wait for it", stalled.Round(time.Second))
	case b.State == "full":
		return "BUFFER FULL: sensors are refused"
	}
	return ""
}

func (d *Daemon) cloudLine(u *UplinkStatus) string {
	switch u.State {
	case uplinkOff:
		return "no cloud (uplink.urls is empty)"
	case uplink.Connected:
		return fmt.Sprintf("cloud connected, round trip %.0f ms", u.RTT*1e3)
	case uplink.StoreChanged:
		return "THE CLOUD HAS ANOTHER STORE: touchline uplink accept-store"
	}
	if u.LastError == "" {
		return "cloud not connected yet"
	}
	return fmt.Sprintf("cloud not connected: %s", u.LastError)
}
