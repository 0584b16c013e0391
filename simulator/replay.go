package simulator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"touchline"
	"touchline/payload"
)

// ReplayOptions say what Replay sends, and how fast.
type ReplayOptions struct {
	To       string         // mqtt://HOST:PORT, ws://HOST:PORT or http://HOST:PORT
	File     string         // .csv or .csv.gz with time_unix_ns,sensor,metric,unit,value
	Speed    float64        // times as fast as it was recorded; 0 is as fast as it goes
	MaxRate  float64        // samples a second over all sensors, sent for the first time; 0 is no limit
	Batch    int            // samples a message, at most; 0 is 100
	Window   int            // messages in flight a connection; 0 is 8. HTTP always has one
	Progress func(Progress) // called about once a second from one goroutine, and not after Replay returned; may be nil
}

const (
	defaultBatch  = 100
	maxBatch      = 500
	defaultWindow = 8 // of some 7 KB: a gateway that commits in 10 ms takes 80,000 samples a second from one sensor
	// maxPackBytes bounds one message, below the 64 KiB that a gateway takes
	// by default.
	maxPackBytes = 48 << 10
	// maxBatchWait bounds how long the first sample of a message waits for
	// the last one when the replay is paced.
	maxBatchWait = time.Second
)

func (o *ReplayOptions) validate() (target, error) {
	to, err := parseTarget(o.To)
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.File == "" {
		err = errors.Join(err, errors.New("no recording to replay: name a .csv or .csv.gz file"))
	}
	if o.Speed < 0 || math.IsNaN(o.Speed) || math.IsInf(o.Speed, 0) {
		err = errors.Join(err, fmt.Errorf("speed %v: want 0 (as fast as it goes) or more", o.Speed))
	}
	if o.MaxRate < 0 || math.IsNaN(o.MaxRate) || math.IsInf(o.MaxRate, 0) {
		err = errors.Join(err, fmt.Errorf("rate limit %v: want 0 (none) or more samples a second", o.MaxRate))
	}
	if o.Batch < 1 || o.Batch > maxBatch {
		err = errors.Join(err, fmt.Errorf("batch of %d samples: want 1 to %d", o.Batch, maxBatch))
	}
	if o.Window < 1 || o.Window > maxWindow {
		err = errors.Join(err, fmt.Errorf("window of %d messages: want 1 to %d", o.Window, maxWindow))
	}
	return to, err
}

// Replay sends a recording as SenML JSON, each sensor over a connection of its
// own and in the order of the file, and returns when the gateway has
// acknowledged all of it. A message is sent again only where its
// acknowledgement did not come: after a lost connection, or a 503.
//
// When ctx ends first, Replay returns what was counted so far and ctx's
// cause. Other errors are bad options, a bad file (with line and column), or
// wrap ErrRefused. A gateway that is away is waited for without end.
func Replay(ctx context.Context, options ReplayOptions, logger *slog.Logger) (Result, error) {
	to, err := options.validate()
	if err != nil {
		return Result{}, err
	}
	rec, err := readRecording(options.File)
	if err != nil {
		return Result{}, err
	}
	logger.Info("recording read", "file", options.File, "samples", rec.samples, "sensors", len(rec.sensors))
	r := &run{
		target: to, kind: senmlPacks, window: options.Window,
		total: int64(rec.samples), progress: options.Progress, logger: logger,
	}
	pace := &pace{began: time.Now(), firstNs: rec.firstNs, speed: options.Speed}
	limit := newRateLimit(options.MaxRate)
	feeds := make(map[string]feed, len(rec.sensors))
	for sensor, samples := range rec.sensors {
		feeds[sensor] = &replayFeed{samples: samples, batch: options.Batch, pace: pace, limit: limit}
	}
	return r.feeds(ctx, feeds)
}

// replayFeed is one sensor's part of a recording.
type replayFeed struct {
	samples []touchline.Sample // not taken yet
	batch   int
	pace    *pace
	limit   *rateLimit
}

func (f *replayFeed) Next(now time.Time) (message, bool) {
	if len(f.samples) == 0 {
		return message{}, false
	}
	n, due := f.pace.batch(f.samples[:min(f.batch, len(f.samples))])
	body, n := encodePack(f.samples[:n])
	f.samples = f.samples[n:]
	if allowed := f.limit.reserve(n, now); allowed.After(due) {
		due = allowed
	}
	return message{body: body, samples: n, due: due}, true
}

// encodePack writes as many of the samples as fit a message, and returns how
// many that were. The reader of the recording has checked what the encoder
// checks; one sample always fits (three names of 128 bytes, and two numbers).
func encodePack(samples []touchline.Sample) ([]byte, int) {
	for n := len(samples); ; n = (n + 1) / 2 {
		body, err := payload.AppendSenMLJSON(make([]byte, 0, 96*n), samples[:n])
		if err != nil {
			panic("BUG: recording was checked: " + err.Error())
		}
		if len(body) <= maxPackBytes || n == 1 {
			return body, n
		}
	}
}

// pace says when a sample of a recording is due. It is not changed once the
// replay has begun.
type pace struct {
	began   time.Time
	firstNs int64   // of the recording
	speed   float64 // 0: everything is due at once
}

func (p *pace) due(timeNs int64) time.Time {
	if p.speed == 0 {
		return p.began
	}
	after := float64(timeNs-p.firstNs) / p.speed
	return p.began.Add(time.Duration(min(after, math.MaxInt64/2)))
}

// batch returns how many of the samples go into the next message, and when it
// is due: when its last sample would have been measured.
func (p *pace) batch(samples []touchline.Sample) (int, time.Time) {
	first := p.due(samples[0].Time)
	due := first
	for i, s := range samples[1:] {
		at := p.due(s.Time)
		if at.Sub(first) > maxBatchWait {
			return i + 1, due
		}
		if at.After(due) {
			due = at
		}
	}
	return len(samples), due
}

// rateLimit spreads samples evenly: never more than its rate in any second,
// beyond one message a sensor. It is safe for concurrent use.
type rateLimit struct {
	perSample float64 // nanoseconds; 0 is no limit

	mu   sync.Mutex
	next time.Time // when the next sample may leave
}

func newRateLimit(perSecond float64) *rateLimit {
	if perSecond == 0 {
		return &rateLimit{}
	}
	return &rateLimit{perSample: float64(time.Second) / perSecond}
}

// reserve takes the next n places and returns the time of the first.
func (l *rateLimit) reserve(n int, now time.Time) time.Time {
	if l.perSample == 0 {
		return now
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next.Before(now) {
		l.next = now
	}
	at := l.next
	l.next = at.Add(time.Duration(min(float64(n)*l.perSample, math.MaxInt64/2)))
	return at
}
