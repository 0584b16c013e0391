package jetstream

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Options are the settings of a Queue. None has a magic zero but where it says so.
type Options struct {
	// Servers are the addresses of a NATS cluster with JetStream, nats://A,nats://B;
	// empty runs a server in this process, whose streams are in Folder.
	Servers string
	Folder  string

	// Store is the id of the record store that the queue is for: letters, digits and -.
	// Clouds with a store each may share a cluster.
	Store string

	// CredentialsFile is a NATS .creds file, CAFile a CA in PEM for tls:// addresses;
	// empty is none.
	CredentialsFile, CAFile string

	// Monitors are the monitoring addresses of all servers of the cluster
	// (http://A:8222), where it is checked that they sync before they answer. A
	// client can't see it. Confirmed says that an operator did instead.
	Monitors  []string
	Confirmed bool

	// Shards is the number of streams that blocks are spread over, by gateway: 1 to 64.
	// It may change; what older streams hold is recorded as well.
	Shards int

	// Replicas is the number of servers that hold each stream: 1, 3 or 5.
	Replicas int

	// MaxBytes bounds all streams together. When one is full ingest waits.
	MaxBytes int64

	// MaxAge is how long a block may wait to be recorded. An older one leaves the
	// queue; its gateway has it still.
	MaxAge time.Duration

	// Duplicates is how long a block is known that was published, so that it is
	// not queued twice. It is a first filter, and saves work only. 100 ms to MaxAge; 0 has none.
	Duplicates time.Duration

	// AckWait is after which time a block that was taken and not recorded is
	// given to another recorder.
	AckWait time.Duration
}

func (o *Options) timeout() time.Duration { return publishTimeout }

func (o *Options) validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(o.Servers != "" || o.Folder != "", "Folder is empty: want one for the embedded server")
	need(o.Servers != "" || o.Replicas == 1, "Replicas is %d: one embedded server has 1", o.Replicas)
	need(o.Store != "" && strings.Map(dropStoreLetter, o.Store) == "", "Store is %.60q: want letters, digits and -", o.Store)
	need(o.Shards >= 1 && o.Shards <= maxShards, "Shards is %d: want 1 to %d", o.Shards, maxShards)
	need(o.Replicas == 1 || o.Replicas == 3 || o.Replicas == 5, "Replicas is %d: want 1, 3 or 5", o.Replicas)
	need(o.MaxBytes >= 1<<20, "MaxBytes is %d: want at least %d", o.MaxBytes, 1<<20)
	need(o.MaxAge >= time.Minute, "MaxAge is %s: want at least a minute", o.MaxAge)
	need(o.Duplicates == 0 || o.Duplicates >= 100*time.Millisecond && o.Duplicates <= o.MaxAge, "Duplicates is %s: want 100ms to MaxAge", o.Duplicates)
	need(o.AckWait >= 100*time.Millisecond, "AckWait is %s: want at least 100ms", o.AckWait)
	return errors.Join(errs...)
}

// dropStoreLetter leaves what can't be in the name of a stream.
func dropStoreLetter(r rune) rune {
	if r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
		return -1
	}
	return r
}

// maxShards: each is a Raft group in a cluster, and two goroutines in a recorder.
const maxShards = 64

// shown is addresses without what may be a password.
func shown(servers string) string {
	var list []string
	for _, text := range strings.Split(servers, ",") {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			list = append(list, "(an address that can't be read)")
			continue
		}
		list = append(list, u.Redacted())
	}
	return strings.Join(list, ",")
}
