package simulator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"
)

// StadiumOptions say who plays, and where what they measure goes.
type StadiumOptions struct {
	To       string         // mqtt://HOST:PORT, ws://HOST:PORT or http://HOST:PORT
	Players  int            // each a connection of its own; 1 to 10,000
	RateHz   float64        // messages a second of each player; above 0, at most 1,000
	For      time.Duration  // how long they play; 0 is until the context ends
	Seed     uint64         // the same seed makes the same match
	Progress func(Progress) // called about once a second from one goroutine, and not after Stadium returned; may be nil
}

const (
	maxRateHz = 1000
	// playerMemory is how many messages a player keeps while he can't send,
	// as a small wearable would: 256 of 150 bytes. Older ones are skipped.
	playerMemory = maxWindow
	// drainTimeout is how long the last messages may wait for their
	// acknowledgement when the match is over.
	drainTimeout = 10 * time.Second
	// samplesPerMessage counts the metrics of appendMeasurement.
	samplesPerMessage = 5
)

// ErrUnacknowledged is wrapped when a match has ended and the gateway did not
// acknowledge its last messages in time.
var ErrUnacknowledged = errors.New("messages were not acknowledged")

func (o *StadiumOptions) validate() (target, error) {
	to, err := parseTarget(o.To)
	if o.Players < 1 || o.Players > maxSensors {
		err = errors.Join(err, fmt.Errorf("%d players: want 1 to %d", o.Players, maxSensors))
	}
	if !(o.RateHz > 0 && o.RateHz <= maxRateHz) {
		err = errors.Join(err, fmt.Errorf("rate of %v Hz: want more than 0, and at most %d", o.RateHz, maxRateHz))
	}
	if o.For < 0 {
		err = errors.Join(err, fmt.Errorf("duration of %s: want 0 (until stopped) or more", o.For))
	}
	return to, err
}

// Stadium lets players move over a pitch of 105 x 68 m, each of whom sends
// plain JSON objects: t (ns since the Unix epoch), heart_rate (beat/min), x
// and y (m, from a corner of the pitch), speed (m/s) and acceleration (m/s²,
// along the movement: negative while braking). It returns when the match is
// over and all is acknowledged.
//
// When ctx ends first, Stadium returns what was counted so far and ctx's
// cause. Other errors are bad options, or wrap ErrRefused or
// ErrUnacknowledged. While the gateway is away a player keeps his last
// messages (playerMemory) and tries to come back; older ones are skipped, and
// counted.
func Stadium(ctx context.Context, options StadiumOptions, logger *slog.Logger) (Result, error) {
	to, err := options.validate()
	if err != nil {
		return Result{}, err
	}
	r := &run{
		target: to, kind: plainObjects, window: playerMemory,
		progress: options.Progress, logger: logger,
	}
	if options.For > 0 {
		messages := math.Floor(options.For.Seconds() * options.RateHz)
		r.total = int64(messages) * int64(options.Players) * samplesPerMessage
		late := fmt.Errorf("%w within %s of the end", ErrUnacknowledged, drainTimeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, options.For+drainTimeout, late)
		defer cancel()
	}
	kickoff := time.Now()
	feeds := make(map[string]feed, options.Players)
	for i := range options.Players {
		feeds[fmt.Sprintf("player-%03d", i+1)] = newPlayerFeed(&options, kickoff, i, r)
	}
	return r.feeds(ctx, feeds)
}

// playerFeed is what one player measures, RateHz times a second. Where a
// courier can't take a measurement in time, it is made when it is taken: the
// model needs no clock.
type playerFeed struct {
	player  *player
	period  time.Duration
	next    time.Time // of the next measurement
	left    int64     // measurements; negative: without end
	skipped func(samples int64)
}

func newPlayerFeed(options *StadiumOptions, kickoff time.Time, number int, r *run) *playerFeed {
	period := time.Duration(float64(time.Second) / options.RateHz)
	f := &playerFeed{
		player: newPlayer(options.Seed, number),
		period: period,
		// The players' messages are spread over the period.
		next:    kickoff.Add(period * time.Duration(number) / time.Duration(options.Players)),
		left:    -1,
		skipped: func(samples int64) { r.counters.skipped.Add(samples) },
	}
	if options.For > 0 {
		f.left = r.total / int64(options.Players) / samplesPerMessage
	}
	return f
}

func (f *playerFeed) Next(now time.Time) (message, bool) {
	for f.left != 0 {
		at := f.next
		f.next = f.next.Add(f.period)
		f.left--
		f.player.advance(f.period.Seconds())
		if now.Sub(at) > f.period*playerMemory {
			f.skipped(samplesPerMessage)
			continue
		}
		body := appendMeasurement(make([]byte, 0, 160), f.player, at.UnixNano())
		return message{body: body, samples: samplesPerMessage, due: at}, true
	}
	return message{}, false
}

// appendMeasurement writes what the player's sensors show, as exact as such
// sensors are: centimetres, and whole heart beats.
func appendMeasurement(b []byte, p *player, timeNs int64) []byte {
	number := func(name string, v float64, digits int) {
		b = append(b, `,"`...)
		b = append(b, name...)
		b = append(b, `":`...)
		b = strconv.AppendFloat(b, v, 'f', digits, 64)
	}
	b = append(b, `{"t":`...)
	b = strconv.AppendInt(b, timeNs, 10)
	number("heart_rate", min(max(p.heart, minHeart), maxHeart), 0)
	number("x", p.at.x, 2)
	number("y", p.at.y, 2)
	number("speed", p.speed, 2)
	number("acceleration", p.accel, 2)
	return append(b, '}')
}
