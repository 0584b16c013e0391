package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestPlayer_StaysOnThePitchAndWithinHumanBounds(t *testing.T) {
	const (
		maxSpeed = sprintMS + 1e-9
		maxAccel = 2 / math.E * sprintMS / smoothS * 1.02 // steps of 20 ms are not quite continuous
	)
	for seed := range uint64(20) {
		for _, rateHz := range []float64{0.5, 10, 25, 300} {
			p := newPlayer(seed, int(seed)*7)
			fastest, hearts := 0.0, [2]float64{300, 0}
			for i := range int(600 * rateHz) {
				before, speedBefore := p.at, p.speed
				p.advance(1 / rateHz)
				moved := p.at.minus(before).length() * rateHz
				switch {
				case p.at.x < 0 || p.at.x > pitchLengthM || p.at.y < 0 || p.at.y > pitchWidthM:
					t.Fatalf("seed %d, %v Hz, message %d: at %+v, off the pitch", seed, rateHz, i, p.at)
				case p.speed > maxSpeed || moved > maxSpeed:
					t.Fatalf("seed %d, %v Hz, message %d: %v m/s, moved at %v m/s", seed, rateHz, i, p.speed, moved)
				case math.Abs(p.accel) > maxAccel || math.Abs(p.speed-speedBefore)*rateHz > maxAccel:
					t.Fatalf("seed %d, %v Hz, message %d: accelerates by %v m/s²: want at most %v", seed, rateHz, i, p.accel, maxAccel)
				case p.heart < minHeart || p.heart > maxHeart:
					t.Fatalf("seed %d, %v Hz, message %d: heart rate %v", seed, rateHz, i, p.heart)
				}
				fastest = max(fastest, p.speed)
				hearts = [2]float64{min(hearts[0], p.heart), max(hearts[1], p.heart)}
			}
			if fastest < 3 || hearts[1]-hearts[0] < 15 {
				t.Errorf("seed %d, %v Hz: at most %.1f m/s in ten minutes, heart rate from %.0f to %.0f: he hardly plays", seed, rateHz, fastest, hearts[0], hearts[1])
			}
		}
	}
}

// match returns what some players would send in half a minute.
func match(seed uint64, players int) string {
	var b []byte
	for i := range players {
		p := newPlayer(seed, i)
		for k := range int64(300) {
			p.advance(0.1)
			b = append(appendMeasurement(b, p, k*1e8), '\n')
		}
	}
	return string(b)
}

func TestStadium_IsTheSameMatchForTheSameSeed(t *testing.T) {
	if one, again := match(1, 3), match(1, 3); one != again {
		t.Error("the same seed made two different matches")
	}
	if match(1, 3) == match(2, 3) {
		t.Error("two seeds made the same match")
	}
	if m := match(1, 2); m[:len(m)/2] == m[len(m)/2:] {
		t.Error("two players move as one")
	}
}

func TestStadium_DeliversEveryMessage(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			g := newTestGateway(t, scheme, nil)
			options := StadiumOptions{To: g.url, Players: 8, RateHz: 100, For: 200 * time.Millisecond, Seed: 3}
			res, err := Stadium(t.Context(), options, quiet)
			if err != nil {
				t.Fatal(err)
			}
			messages, samples := g.counts()
			if res.Sensors != 8 || res.Samples+res.Skipped != 8*20*5 || res.Samples != 5*res.Messages || res.Messages == 0 || res.Unacknowledged+res.ResentMessages != 0 {
				t.Errorf("result %+v: want 160 messages of 5 samples", res)
			}
			if int64(messages) != res.Messages || int64(samples) != res.Samples {
				t.Errorf("%d messages with %d samples arrived: want those of %+v", messages, samples, res)
			}
			for sensor, bodies := range g.all {
				checkMeasurements(t, sensor, bodies)
			}
		})
	}
}

func checkMeasurements(t *testing.T, sensor string, bodies []string) {
	t.Helper()
	var lastNs int64
	for _, body := range bodies {
		var m struct {
			T                         int64
			HeartRate                 *float64 `json:"heart_rate"`
			X, Y, Speed, Acceleration *float64
		}
		if err := json.Unmarshal([]byte(body), &m); err != nil || m.HeartRate == nil || m.X == nil || m.Y == nil || m.Speed == nil || m.Acceleration == nil {
			t.Fatalf("%s sent %s (%v): want t and five metrics", sensor, body, err)
		}
		if lastNs != 0 && (m.T <= lastNs || (m.T-lastNs)%10e6 != 0) {
			t.Errorf("%s measured %d ns behind the last time: want 10 ms, or several where it skipped", sensor, m.T-lastNs)
		}
		lastNs = m.T
	}
}

func TestStadium_SendsAgainAfterALostConnection(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			g := newTestGateway(t, scheme, func(_ string, arrival int) verdict {
				if arrival%25 == 0 {
					return drop
				}
				return accept
			})
			options := StadiumOptions{To: g.url, Players: 4, RateHz: 100, For: 300 * time.Millisecond}
			res, err := Stadium(t.Context(), options, quiet)
			if err != nil {
				t.Fatal(err)
			}
			if res.Messages*5+res.Skipped != 4*30*5 || res.Unacknowledged != 0 || res.ResentMessages == 0 || res.Reconnects == 0 {
				t.Errorf("result %+v: want 120 messages, some of them sent again", res)
			}
		})
	}
}

func TestStadium_EndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := newTestGateway(t, "mqtt", func(_ string, arrival int) verdict {
		if arrival == 50 {
			cancel()
		}
		return accept
	})
	res, err := Stadium(ctx, StadiumOptions{To: g.url, Players: 5, RateHz: 100}, quiet)
	if !errors.Is(err, context.Canceled) || res.Messages == 0 {
		t.Errorf("error %v, result %+v: want context.Canceled and what was counted", err, res)
	}
}

func TestStadium_SkipsWhatAPlayersMemoryCantHold(t *testing.T) {
	kickoff := time.Unix(1_800_000_000, 0)
	r := &run{total: 1000 * samplesPerMessage}
	options := &StadiumOptions{Players: 1, RateHz: 10, For: 100 * time.Second}
	f := newPlayerFeed(options, kickoff, 0, r)
	now := kickoff.Add(99900 * time.Millisecond) // of the last measurement
	messages := 0
	for {
		m, ok := f.Next(now)
		if !ok {
			break
		}
		if now.Sub(m.due) > playerMemory*f.period {
			t.Fatalf("a measurement of %s ago is sent", now.Sub(m.due))
		}
		messages++
	}
	if messages != playerMemory+1 || r.counters.skipped.Load() != (1000-playerMemory-1)*samplesPerMessage {
		t.Errorf("%d messages, %d samples skipped: want the last %d of 1000", messages, r.counters.skipped.Load(), playerMemory+1)
	}
}

func TestStadium_RefusesBadOptions(t *testing.T) {
	good := StadiumOptions{To: "ws://127.0.0.1:1", Players: 1, RateHz: 1}
	for _, c := range []struct {
		change func(*StadiumOptions)
		want   string
	}{
		{func(o *StadiumOptions) { o.To = "ftp://x:1" }, "scheme"},
		{func(o *StadiumOptions) { o.Players = 0 }, "0 players"},
		{func(o *StadiumOptions) { o.Players = 10_001 }, "10001 players"},
		{func(o *StadiumOptions) { o.RateHz = 0 }, "rate of 0 Hz"},
		{func(o *StadiumOptions) { o.RateHz = math.NaN() }, "rate of NaN Hz"},
		{func(o *StadiumOptions) { o.RateHz = 1001 }, "rate of 1001 Hz"},
		{func(o *StadiumOptions) { o.For = -time.Second }, "duration of -1s"},
	} {
		options := good
		c.change(&options)
		if _, err := Stadium(t.Context(), options, quiet); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v: want %q", err, c.want)
		}
	}
}
