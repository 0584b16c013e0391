package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"
)

const (
	warmUp     = 2 * time.Second  // before a measured phase, or half of it where that is less
	ackTimeout = 30 * time.Second // for the last acknowledgements of a phase
	// drainStall is how long no message may arrive while some are missing.
	drainStall = 20 * time.Second
)

// A number is a figure that may be unknown: NaN, which is null in JSON.
type number float64

var unknown = number(math.NaN())

func (n number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// figures are what one phase of load showed. A million is of messages.
type figures struct {
	Offered      number `json:"offered_messages_per_s"` // null: flat out
	Acknowledged number `json:"acknowledged_messages_per_s"`
	Stored       number `json:"stored_messages_per_s"`
	GatewayCPU   number `json:"gateway_cpu_s_per_million"`
	CloudCPU     number `json:"cloud_cpu_s_per_million"`
	LoadCPU      number `json:"load_cpu_s_per_million"`
	AckP50       number `json:"publish_to_ack_p50_s"`
	AckP99       number `json:"publish_to_ack_p99_s"`
	StoredP50    number `json:"publish_to_stored_p50_s"`
	StoredP99    number `json:"publish_to_stored_p99_s"`
	Wire         number `json:"uplink_bytes_per_message"`
	Written      number `json:"gateway_written_bytes_per_message"`
	CloudWritten number `json:"cloud_written_bytes_per_message"`
	Commits      number `json:"gateway_commits_per_s"`
	PeakMiB      number `json:"gateway_peak_mib_so_far"`
	CloudPeakMiB number `json:"cloud_peak_mib_so_far"`
}

// totals are messages over all phases.
type totals struct {
	Sent   int64 `json:"sent"`
	Acked  int64 `json:"acknowledged"`
	Stored int64 `json:"stored"`
}

// bench measures one subject, phase by phase.
type bench struct {
	subject subject
	load    loadOptions
	warmUp  time.Duration
	total   totals
}

// phase runs a load, calls during while it is under way, and waits for the
// last acknowledgement.
func (b *bench) phase(ctx context.Context, o loadOptions, during func(*load) error) (*histogram, error) {
	o.address = b.subject.Address()
	l, err := connectLoad(ctx, o)
	if err != nil {
		return nil, err
	}
	defer l.close()
	l.publish()
	if err := sleep(ctx, b.warmUp); err != nil {
		return nil, err
	}
	if err := during(l); err != nil {
		gateway, cloud := b.subject.Processes()
		return nil, errors.Join(err, gateway.died(), cloud.died())
	}
	latency, err := l.finish(ackTimeout)
	sent, acked := l.counts()
	b.total.Sent += sent
	b.total.Acked += acked
	return latency, err
}

// run measures a steady load: rate messages a second, or flat out with 0.
func (b *bench) run(ctx context.Context, rate float64, duration time.Duration) (*figures, error) {
	o := b.load
	o.rate = rate
	var f *figures
	latency, err := b.phase(ctx, o, func(l *load) error {
		began := time.Now()
		l.measure(began, began.Add(duration))
		before, err := b.mark(ctx, l)
		if err != nil {
			return err
		}
		if err := sleep(ctx, time.Until(began.Add(duration))); err != nil {
			return err
		}
		after, err := b.mark(ctx, l)
		if err != nil {
			return err
		}
		f, err = b.figures(before, after)
		return err
	})
	if err != nil {
		return nil, err
	}
	f.Offered = number(rate)
	if rate == 0 {
		f.Offered = unknown
	}
	acks := latency.cumulative()
	f.AckP50, f.AckP99 = number(acks.quantile(0.5)), number(acks.quantile(0.99))
	return f, nil
}

// timedMark is a mark with what the bench itself knows.
type timedMark struct {
	mark
	at      time.Time
	acked   float64
	loadCPU float64 // of this process
}

func (b *bench) mark(ctx context.Context, l *load) (timedMark, error) {
	m := timedMark{at: time.Now()}
	_, acked := l.counts()
	m.acked = float64(acked)
	var err error
	if m.loadCPU, err = ownCPUSeconds(); err != nil {
		return m, err
	}
	m.mark, err = b.subject.Mark(ctx)
	return m, err
}

func ownCPUSeconds() (float64, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime), nil
}

// figures turns two marks into rates.
func (b *bench) figures(before, after timedMark) (*figures, error) {
	seconds := after.at.Sub(before.at).Seconds()
	acked, stored := after.acked-before.acked, after.stored-before.stored
	if acked <= 0 {
		return nil, errors.New("nothing was acknowledged in the measured time")
	}
	gateway, cloud := b.subject.Processes()
	gatewayPeak, err := gateway.memoryPeakKiB()
	cloudPeak, err2 := cloud.memoryPeakKiB()
	perMillion := func(cpu, messages float64) number { return ratio(cpu*1e6, messages) }
	ages := after.ages.since(before.ages)
	return &figures{
		Acknowledged: number(acked / seconds),
		Stored:       number(stored / seconds),
		GatewayCPU:   perMillion(after.gatewayCPU-before.gatewayCPU, acked),
		CloudCPU:     perMillion(after.cloudCPU-before.cloudCPU, stored),
		LoadCPU:      perMillion(after.loadCPU-before.loadCPU, acked),
		StoredP50:    number(ages.quantile(0.5)),
		StoredP99:    number(ages.quantile(0.99)),
		Wire:         ratio(after.wireBytes-before.wireBytes, stored),
		Written:      ratio(after.gatewayWrites-before.gatewayWrites, acked),
		CloudWritten: ratio(after.cloudWrites-before.cloudWrites, stored),
		Commits:      number((after.commits - before.commits) / seconds),
		PeakMiB:      number(gatewayPeak) / 1024,
		CloudPeakMiB: number(cloudPeak) / 1024,
	}, errors.Join(err, err2)
}

// ratio is unknown where it would divide by zero.
func ratio(a, b float64) number {
	if b == 0 {
		return unknown
	}
	return number(a / b)
}

// backlog is what the phase without a cloud showed.
type backlog struct {
	Messages  int64  `json:"messages"`
	DiskBytes number `json:"disk_bytes_per_message"` // all files of the buffer
	LogMiB    number `json:"write_ahead_log_mib"`    // in that; it is used again and again, and grows no more
	Drained   number `json:"drained_messages_per_s"` // from the start of the cloud, reconnecting included
}

// withoutCloud stops the cloud, publishes, looks by how much the buffer's
// files have grown, and brings the cloud back.
func (b *bench) withoutCloud(ctx context.Context, rate float64, duration time.Duration) (*backlog, error) {
	bytes0, _, err := diskBytes(b.subject.BufferDir())
	if err != nil {
		return nil, err
	}
	b.subject.StopCloud()
	o := b.load
	o.rate = rate
	ackedBefore := b.total.Acked
	if _, err := b.phase(ctx, o, func(*load) error { return sleep(ctx, duration) }); err != nil {
		return nil, err
	}
	bytes1, logBytes, err := diskBytes(b.subject.BufferDir())
	if err != nil {
		return nil, err
	}
	messages := b.total.Acked - ackedBefore
	out := backlog{
		Messages:  messages,
		DiskBytes: ratio(float64(bytes1-bytes0), float64(messages)),
		LogMiB:    number(logBytes) / (1 << 20),
	}
	if err := b.subject.StartCloud(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	err = b.drain(ctx)
	out.Drained = ratio(float64(out.Messages), time.Since(began).Seconds())
	return &out, err
}

// drain waits until all that was acknowledged has been stored.
func (b *bench) drain(ctx context.Context) error {
	last, lastAt := -1.0, time.Now()
	for {
		stored, err := b.subject.Stored(ctx)
		if err != nil {
			return err
		}
		b.total.Stored = int64(math.Floor(stored))
		if b.total.Stored >= b.total.Acked {
			return nil
		}
		if stored != last {
			last, lastAt = stored, time.Now()
		}
		if time.Since(lastAt) > drainStall {
			return fmt.Errorf("%d of %d acknowledged messages have arrived, and none in the last %s",
				b.total.Stored, b.total.Acked, drainStall)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// audit says whether as many messages were stored as were acknowledged. One
// that was sent and not acknowledged may be stored or not.
func (t totals) audit() error {
	if t.Stored < t.Acked {
		return fmt.Errorf("%d messages were acknowledged, but only %d are stored: %d are lost", t.Acked, t.Stored, t.Acked-t.Stored)
	}
	if t.Stored > t.Sent {
		return fmt.Errorf("%d messages were sent, but %d are stored: %d are there twice", t.Sent, t.Stored, t.Stored-t.Sent)
	}
	return nil
}
