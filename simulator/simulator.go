// Package simulator is a stadium of real clients: it moves players over a
// pitch, or replays a recording, and sends what they measure to a gateway as
// sensors do, each over a connection of its own. A message counts as
// delivered only when the gateway acknowledged it; until then it is kept, and
// sent again after a lost connection, so the counts of a Result are exact.
// Stadium and Replay block until they are done or their context ends, and
// leave nothing running.
package simulator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// maxSensors bounds how many connections one run opens. Each costs a file
// descriptor here and up to 100 KB (an MQTT client has five goroutines and a
// window of messages): 10,000 of them need 1 GB.
const maxSensors = 10_000

// maxDialing bounds how many connections are being made at once, below the
// backlog of 128 that a listener has by default on older systems.
const maxDialing = 64

// A Result says what a run did. A message is acknowledged once, however
// often it had to be sent.
type Result struct {
	Sensors        int           `json:"sensors"`         // connections of their own
	Samples        int64         `json:"samples"`         // acknowledged
	Messages       int64         `json:"messages"`        // acknowledged
	Unacknowledged int64         `json:"unacknowledged"`  // samples taken from the source, and not acknowledged when the run ended
	ResentMessages int64         `json:"resent_messages"` // sendings beyond the first: each may be stored twice if the first one arrived
	ResentSamples  int64         `json:"resent_samples"`  // the samples in them
	Skipped        int64         `json:"skipped"`         // samples that a player never sent because its memory was full
	Reconnects     int64         `json:"reconnects"`      // connections beyond the first of each sensor
	Duration       time.Duration `json:"duration_ns"`
}

// Progress is the state of a run under way.
type Progress struct {
	Result            // so far
	Connected int     // connections that are up
	Total     int64   // samples that there will be; 0 where that is not known
	PerSecond float64 // samples acknowledged a second since the last report
}

// progressInterval is how often Progress functions are called.
const progressInterval = time.Second

// ErrRefused is wrapped by the error of a run that ended because the gateway
// will never take a message or a connection (a bad request, wrong
// credentials): sending it again could not help.
var ErrRefused = errors.New("refused by the gateway")

// counters are shared by the couriers of a run.
type counters struct {
	samples, messages             atomic.Int64 // acknowledged
	taken                         atomic.Int64 // samples taken from the source
	resentMessages, resentSamples atomic.Int64
	skipped                       atomic.Int64
	reconnects                    atomic.Int64
	connected                     atomic.Int64
	finished                      atomic.Int64          // sensors that have delivered all
	lastError                     atomic.Pointer[error] // why the latest connection was lost
}

func (c *counters) result(sensors int, began time.Time) Result {
	samples := c.samples.Load() // before taken, which is never behind it
	return Result{
		Sensors:        sensors,
		Samples:        samples,
		Messages:       c.messages.Load(),
		Unacknowledged: c.taken.Load() - samples,
		ResentMessages: c.resentMessages.Load(),
		ResentSamples:  c.resentSamples.Load(),
		Skipped:        c.skipped.Load(),
		Reconnects:     c.reconnects.Load(),
		Duration:       time.Since(began),
	}
}

// run is what Stadium and Replay have in common: couriers that share a
// target, counters and somebody who watches.
type run struct {
	target   target
	kind     contentKind
	window   int   // messages in flight a connection
	total    int64 // samples, where known
	progress func(Progress)
	counters counters
	logger   *slog.Logger
}

// feeds starts a courier for each sensor and returns when all have delivered
// what their feed had, or one was refused, or ctx has ended.
func (r *run) feeds(ctx context.Context, feeds map[string]feed) (Result, error) {
	began := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	dialing := make(chan struct{}, maxDialing)
	for sensor, f := range feeds {
		c := &courier{
			sensor:   sensor,
			feed:     f,
			window:   min(r.window, r.target.maxWindow()),
			counters: &r.counters,
			dial: func(ctx context.Context) (link, error) {
				select {
				case dialing <- struct{}{}:
					defer func() { <-dialing }()
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				return r.target.dial(ctx, sensor, r.kind)
			},
			logger: r.logger.With("sensor", sensor),
		}
		group.Go(func() error {
			err := c.deliver(groupCtx)
			r.counters.finished.Add(1)
			return err
		})
	}
	watching, stop := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.watch(watching, len(feeds), began)
	}()
	err := group.Wait()
	stop()
	<-watched
	if last := r.counters.lastError.Load(); last != nil && errors.Is(err, ErrUnacknowledged) {
		err = fmt.Errorf("%w (the last connection: %w)", err, *last)
	}
	return r.counters.result(len(feeds), began), err
}

// watch reports progress, and logs when connections come and go: once a
// second for all of them, since a gateway's end takes all with it.
func (r *run) watch(ctx context.Context, sensors int, began time.Time) {
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	var samplesBefore int64
	upBefore, lastAt, warned := 0, began, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, res := time.Now(), r.counters.result(sensors, began)
		connected := int(r.counters.connected.Load())
		up := connected + int(r.counters.finished.Load()) // who has finished was not lost
		if up != upBefore {
			r.logConnected(up, sensors, up < upBefore)
		}
		if err := r.counters.lastError.Load(); err != nil && up == 0 && !warned {
			warned = true // once: the gateway may be away for hours
			r.logger.Warn("no sensor can connect; trying on", "err", *err)
		}
		if r.progress != nil {
			perSecond := float64(res.Samples-samplesBefore) / now.Sub(lastAt).Seconds()
			r.progress(Progress{Result: res, Connected: connected, Total: r.total, PerSecond: perSecond})
		}
		samplesBefore, upBefore, lastAt = res.Samples, up, now
	}
}

func (r *run) logConnected(up, sensors int, fewer bool) {
	if !fewer {
		r.logger.Info("sensors connected", "up", up, "sensors", sensors)
		return
	}
	attrs := []any{"up", up, "sensors", sensors}
	if err := r.counters.lastError.Load(); err != nil {
		attrs = append(attrs, "err", *err)
	}
	r.logger.Info("sensors disconnected", attrs...)
}

// refused makes an error that ends the run.
func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}
