package jetstream

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// startPatience is how long the embedded server may take to read its streams
// again: it goes through what a day's outage left, some GB of a disk.
const startPatience = 5 * time.Minute

// embed starts the server. It listens nowhere, so there is nobody to keep out.
func (q *Queue) embed() error {
	if err := os.MkdirAll(q.opts.Folder, 0o700); err != nil {
		return err
	}
	if err := q.lock(); err != nil {
		return err
	}
	ns, err := server.NewServer(&server.Options{
		ServerName: "touchline-cloud", DontListen: true, NoSigs: true,
		JetStream: true, StoreDir: q.opts.Folder, SyncAlways: true,
		JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: storeBytes(&q.opts), MaxPayload: 1 << 20,
	})
	if err != nil {
		return err
	}
	q.embedded = ns
	ns.SetLoggerV2(serverLog{q.log}, false, false, false)
	ns.Start()
	if !ns.ReadyForConnections(startPatience) {
		return errors.New("the server did not get ready: look for what it logged")
	}
	if !ns.JetStreamEnabled() {
		return errors.New("the server has no JetStream: look for what it logged")
	}
	return nil
}

// storeBytes is what the server may use: the streams' limits, and as much again
// for streams of another number of shards and for batches under way.
func storeBytes(o *Options) int64 { return 2*o.MaxBytes + 64<<20 }

// lock keeps a second process out: two servers on one folder destroy it.
func (q *Queue) lock() error {
	name := filepath.Join(q.opts.Folder, "queue.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("another touchline-cloud has this queue open; only one can, and others need queue.nats with addresses: lock %s: %w", name, err)
		return errors.Join(err, f.Close())
	}
	q.unlock = f.Close
	return nil
}
