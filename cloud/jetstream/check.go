package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// minMinor: 2.15 made syncing each write affordable, and does it as we need it.
const minMajor, minMinor = 2, 15

// checkServers refuses servers that may lose what they accepted, where that can
// be seen. A client sees the version; whether a server syncs before it answers
// is only on its monitoring address.
func (q *Queue) checkServers(ctx context.Context) error {
	if q.embedded != nil {
		return nil // made right by embed
	}
	if err := checkVersion(q.conn.ConnectedServerVersion()); err != nil {
		return fmt.Errorf("queue %s: %w", shown(q.conn.ConnectedUrlRedacted()), err)
	}
	if len(q.opts.Monitors) == 0 && !q.opts.Confirmed {
		return errors.New("whether the queue's servers sync each block before they accept it can't be seen: set queue.nats_monitors to " +
			"their monitoring addresses, such as [\"http://10.0.0.5:8222\"], or queue.nats_confirmed = true after you have seen sync_interval: always in the configuration of each")
	}
	away, err := checkMonitors(ctx, q.opts.Monitors)
	if err == nil && away != nil {
		q.log.Warn("some of the queue's servers do not answer; whether they sync is looked at when a process starts again", "error", away)
	}
	return err
}

// checkMonitors asks all servers. Those of a minority may be away, or no process
// could start while one server is down; a queue whose majority is away takes nothing.
func checkMonitors(ctx context.Context, addresses []string) (away, err error) {
	var silent, wrong []error
	for _, address := range addresses {
		err := checkMonitor(ctx, address)
		if err == nil {
			continue
		}
		named := fmt.Errorf("queue.nats_monitors %s: %w", shown(address), err)
		if errors.As(err, new(*unreachable)) {
			silent = append(silent, named)
		} else {
			wrong = append(wrong, named)
		}
	}
	if len(wrong) > 0 || 2*len(silent) >= len(addresses) {
		return nil, errors.Join(append(wrong, silent...)...)
	}
	return errors.Join(silent...), nil
}

// An unreachable is a server that does not answer.
type unreachable struct{ error }

func (u *unreachable) Unwrap() error { return u.error }

func checkVersion(version string) error {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) == 3 {
		major, err1 := strconv.Atoi(parts[0])
		minor, err2 := strconv.Atoi(parts[1])
		if err1 == nil && err2 == nil && (major > minMajor || major == minMajor && minor >= minMinor) {
			return nil
		}
	}
	return fmt.Errorf("nats-server %q is too old: want %d.%d or newer", version, minMajor, minMinor)
}

// checkMonitor asks a server for its version, and whether it syncs each write.
func checkMonitor(ctx context.Context, address string) error {
	var about struct {
		Version   string `json:"version"`
		JetStream struct {
			Config *struct {
				SyncAlways bool `json:"sync_always"`
			} `json:"config"`
		} `json:"jetstream"`
	}
	if err := fetchJSON(ctx, strings.TrimSuffix(address, "/")+"/varz", &about); err != nil {
		return err
	}
	if err := checkVersion(about.Version); err != nil {
		return err
	}
	switch c := about.JetStream.Config; {
	case c == nil:
		return errors.New("this server has no JetStream")
	case !c.SyncAlways:
		return errors.New("this server accepts blocks before it has synced them, and loses them at a power cut: set jetstream { sync_interval: always } in its configuration")
	}
	return nil
}

func fetchJSON(ctx context.Context, url string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("read the address: %w", err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return &unreachable{err}
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s: is it the monitoring address of a nats-server?", answer.Status)
	}
	return json.NewDecoder(io.LimitReader(answer.Body, 4<<20)).Decode(v)
}
