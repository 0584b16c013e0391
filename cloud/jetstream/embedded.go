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
	q.config = *ns.JetStreamConfig()
	return nil
}

// A stream that could not write once, since the disk was full say, takes nothing
// more and answers nobody, when there is room again too. Then the server reads its
// streams anew: after so many batches without an answer, a disk that is merely slow
// being one more reason, and not more often than reviveEvery.
const (
	reviveAfter = 2
	reviveEvery = 15 * time.Second
)

// noteAnswered counts batches to which the embedded server said nothing. Publish calls it.
func (q *Queue) noteAnswered(yes bool) {
	if q.unanswered++; yes {
		q.unanswered = 0
	}
}

// revive has the embedded server read its streams again where it needs that.
func (q *Queue) revive() error {
	if q.embedded == nil || q.unanswered < reviveAfter || time.Since(q.revived) < reviveEvery {
		return nil
	}
	q.log.Warn("the queue does not answer, as after a disk that was full; its streams are read again", "folder", q.opts.Folder)
	q.revived = time.Now()
	if err := q.embedded.ShutdownJetStream(); err != nil {
		return fmt.Errorf("end the queue's streams: %w", err)
	}
	config := q.config
	config.StoreDir = q.opts.Folder
	if err := q.embedded.EnableJetStream(&config); err != nil {
		return fmt.Errorf("read the queue's streams again: %w", err)
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
