package simulator

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"touchline"
)

var schemes = []string{"mqtt", "ws", "http"}

const header = "time_unix_ns,sensor,metric,unit,value\n"

// writeRecording makes a recording of sensors with rows each, interleaved, and
// returns its path and its samples by sensor.
func writeRecording(t *testing.T, sensors, rows int) (string, map[string][]touchline.Sample) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	want := map[string][]touchline.Sample{}
	var text strings.Builder
	text.WriteString(header)
	for i := range rows {
		for s := range sensors {
			sample := touchline.Sample{
				Sensor: fmt.Sprintf("sensor %d \"é\"", s),
				Metric: []string{"heart_rate", "x", `odd "metric"\/é`}[i%3],
				Unit:   []string{"beat/min", "", "m"}[i%3],
				Time:   1547219284950000001 + int64(i)*7_000_003 - int64(rng.IntN(3))*1e9,
				Value:  touchline.NumberValue(rng.NormFloat64() * 1e3),
			}
			want[sample.Sensor] = append(want[sample.Sensor], sample)
			quoted := strings.ReplaceAll(sample.Metric, `"`, `""`)
			fmt.Fprintf(&text, "%d,\"%s\",\"%s\",%s,%v\n", sample.Time,
				strings.ReplaceAll(sample.Sensor, `"`, `""`), quoted, sample.Unit, sample.Value.Float())
		}
	}
	return writeFile(t, "recording.csv", text.String()), want
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func checkArrived(t *testing.T, g *testGateway, want map[string][]touchline.Sample) {
	t.Helper()
	for sensor, samples := range want {
		if got := g.samples(sensor); !slices.Equal(got, samples) {
			t.Errorf("%s: %d samples arrived that are not the %d recorded ones in their order", sensor, len(got), len(samples))
		}
	}
}

func TestReplay_DeliversEachSampleOnceAndInOrder(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			file, want := writeRecording(t, 5, 333)
			g := newTestGateway(t, scheme, nil)
			res, err := Replay(t.Context(), ReplayOptions{To: g.url, File: file, Batch: 50}, quiet)
			if err != nil {
				t.Fatal(err)
			}
			checkArrived(t, g, want)
			if res.Sensors != 5 || res.Samples != 5*333 || res.Messages != 5*7 || res.Unacknowledged != 0 ||
				res.ResentMessages != 0 || res.ResentSamples != 0 || res.Reconnects != 0 {
				t.Errorf("result %+v: want 1665 samples in 35 messages, nothing twice", res)
			}
		})
	}
}

func TestReplay_SendsAgainOnlyWhatWasNotAcknowledged(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			file, want := writeRecording(t, 3, 400)
			g := newTestGateway(t, scheme, func(_ string, arrival int) verdict {
				if arrival%11 == 0 {
					return drop
				}
				return accept
			})
			res, err := Replay(t.Context(), ReplayOptions{To: g.url, File: file, Batch: 10}, quiet)
			if err != nil {
				t.Fatal(err)
			}
			// A connection that ends may take acknowledgements with it that
			// were on their way.
			repeats := g.forgetRepeats()
			checkArrived(t, g, want)
			if int64(repeats) > res.ResentMessages {
				t.Errorf("%d messages were acknowledged twice: only %d were sent again", repeats, res.ResentMessages)
			}
			if res.Samples != 1200 || res.Messages != 120 || res.Reconnects == 0 || res.Unacknowledged != 0 {
				t.Errorf("result %+v: want 1200 samples in 120 messages, over several connections", res)
			}
			// What arrived twice was sent twice. (Not all that was sent
			// arrives: the connection may end before it is read.)
			messages, samples := g.counts()
			if int64(messages) > res.Messages+res.ResentMessages || int64(samples) > res.Samples+res.ResentSamples {
				t.Errorf("%d messages with %d samples arrived: the result %+v counts fewer", messages, samples, res)
			}
			if scheme == "http" && (int64(messages) != res.Messages+res.ResentMessages || int64(samples) != res.Samples+res.ResentSamples) {
				t.Errorf("%d messages with %d samples arrived: the result %+v differs", messages, samples, res)
			}
		})
	}
}

func TestReplay_CountsExactlyWithOneMessageInFlight(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			file, want := writeRecording(t, 1, 100)
			drops := 0
			g := newTestGateway(t, scheme, func(_ string, arrival int) verdict {
				if arrival%4 == 0 {
					drops++
					return drop
				}
				return accept
			})
			res, err := Replay(t.Context(), ReplayOptions{To: g.url, File: file, Batch: 5, Window: 1}, quiet)
			if err != nil {
				t.Fatal(err)
			}
			checkArrived(t, g, want)
			if res.ResentMessages != int64(drops) || res.ResentSamples != int64(5*drops) || res.Reconnects != int64(drops) {
				t.Errorf("result %+v: want %d messages of 5 samples sent again, on as many new connections", res, drops)
			}
		})
	}
}

func TestReplay_WaitsForAGatewayThatIsAway(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			file, want := writeRecording(t, 2, 30)
			g := newTestGateway(t, scheme, nil)
			_, behind, _ := strings.Cut(g.url, "://")
			// A listener that ends each connection at once until the third.
			front, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			proxied := make(chan struct{})
			go func() {
				defer close(proxied)
				proxyAfter(front, behind, 6)
			}()
			res, err := Replay(t.Context(), ReplayOptions{To: scheme + "://" + front.Addr().String(), File: file}, quiet)
			front.Close()
			<-proxied
			if err != nil {
				t.Fatal(err)
			}
			checkArrived(t, g, want)
			if res.Samples != 60 {
				t.Errorf("result %+v: want 60 samples", res)
			}
		})
	}
}

func TestReplay_ComesBackToAGatewayThatIsFull(t *testing.T) {
	for scheme, reconnects := range map[string]int64{"http": 0, "ws": 1} {
		t.Run(scheme, func(t *testing.T) {
			file, want := writeRecording(t, 1, 20)
			g := newTestGateway(t, scheme, func(_ string, arrival int) verdict {
				if arrival == 2 {
					return busy
				}
				return accept
			})
			res, err := Replay(t.Context(), ReplayOptions{To: g.url, File: file, Batch: 5, Window: 1}, quiet)
			if err != nil {
				t.Fatal(err)
			}
			checkArrived(t, g, want)
			if res.ResentMessages != 1 || res.Reconnects != reconnects {
				t.Errorf("result %+v: want one message again, and %d new connections", res, reconnects)
			}
		})
	}
}

func TestReplay_EndsWhenRefused(t *testing.T) {
	for _, scheme := range []string{"ws", "http"} {
		t.Run(scheme, func(t *testing.T) {
			file, _ := writeRecording(t, 3, 20)
			g := newTestGateway(t, scheme, func(string, int) verdict { return reject })
			_, err := Replay(t.Context(), ReplayOptions{To: g.url, File: file}, quiet)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "payload refused") {
				t.Errorf("error %v: want ErrRefused with the gateway's reason", err)
			}
		})
	}
	t.Run("mqtt", func(t *testing.T) {
		file := writeFile(t, "r.csv", header+"1547219284950000000,banned,x,m,1\n")
		g := newTestGateway(t, "mqtt", nil)
		_, err := Replay(t.Context(), ReplayOptions{To: g.url, File: file}, quiet)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "banned") {
			t.Errorf("error %v: want ErrRefused for the sensor", err)
		}
	})
}

func TestReplay_EndsWithItsContextAndWhatWasCounted(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			file, _ := writeRecording(t, 1, 100)
			ctx, cancel := context.WithCancel(t.Context())
			g := newTestGateway(t, scheme, func(_ string, arrival int) verdict {
				if arrival == 3 {
					cancel()
				}
				if arrival >= 3 {
					return drop
				}
				return accept
			})
			res, err := Replay(ctx, ReplayOptions{To: g.url, File: file, Batch: 10, Window: 1}, quiet)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v: want context.Canceled", err)
			}
			if res.Samples != 20 || res.Messages != 2 || res.Unacknowledged != 10 {
				t.Errorf("result %+v: want 20 samples acknowledged and 10 not", res)
			}
		})
	}
}

func TestReplay_ReadsGzip(t *testing.T) {
	file, want := writeRecording(t, 1, 50)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	zipped := filepath.Join(t.TempDir(), "r.csv.gz")
	f, err := os.Create(zipped)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	g := newTestGateway(t, "ws", nil)
	if _, err := Replay(t.Context(), ReplayOptions{To: g.url, File: zipped}, quiet); err != nil {
		t.Fatal(err)
	}
	checkArrived(t, g, want)
}

func TestReplay_ReportsProgress(t *testing.T) {
	file, _ := writeRecording(t, 1, 100)
	var last Progress
	reported := make(chan struct{})
	released := false
	g := newTestGateway(t, "http", func(_ string, arrival int) verdict {
		if arrival == 3 && !released {
			released = true
			<-reported // the gateway is slow until somebody saw that
		}
		return accept
	})
	options := ReplayOptions{To: g.url, File: file, Batch: 10, Progress: func(p Progress) {
		if last.Samples == 0 {
			last = p
			close(reported)
		}
	}}
	if _, err := Replay(t.Context(), options, quiet); err != nil {
		t.Fatal(err)
	}
	if last.Samples != 20 || last.Unacknowledged != 10 || last.Total != 100 || last.Connected != 1 || last.PerSecond <= 0 {
		t.Errorf("progress %+v: want 20 of 100 samples, 10 under way, and one connection", last)
	}
}

func TestReplay_RefusesBadOptions(t *testing.T) {
	good := ReplayOptions{To: "ws://127.0.0.1:1", File: "x.csv"}
	for _, c := range []struct {
		change func(*ReplayOptions)
		want   string
	}{
		{func(o *ReplayOptions) { o.To = "" }, "no gateway"},
		{func(o *ReplayOptions) { o.File = "" }, "no recording"},
		{func(o *ReplayOptions) { o.File = "/nowhere/x.csv" }, "no such file"},
		{func(o *ReplayOptions) { o.Speed = -1 }, "speed -1"},
		{func(o *ReplayOptions) { o.MaxRate = -1 }, "rate limit -1"},
		{func(o *ReplayOptions) { o.Batch = 501 }, "batch of 501"},
		{func(o *ReplayOptions) { o.Window = 257 }, "window of 257"},
	} {
		options := good
		c.change(&options)
		if _, err := Replay(t.Context(), options, quiet); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v: want %q", err, c.want)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for _, c := range []struct{ to, want string }{
		{"mqtt://127.0.0.1:1883", ""},
		{"ws://localhost:8080/", ""},
		{"http://[::1]:8080", ""},
		{"", "no gateway"},
		{"127.0.0.1:1883", "not a URL"},
		{"localhost:1883", "not a URL"},
		{"mqtts://h:1", `scheme "mqtts"`},
		{"mqtt://:1883", "no host"},
		{"mqtt://h", "no port"},
		{"mqtt://h:0", "no port"},
		{"mqtt://h:70000", "no port"},
		{"http://h:80/v1/samples", "behind the port"},
		{"http://u:p@h:80", "user name"},
	} {
		_, err := parseTarget(c.to)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%q: %v", c.to, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q: error %v: want %q", c.to, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: the error shows the password", c.to)
		}
	}
}

func TestReadRecording_SaysWhereAFileIsBad(t *testing.T) {
	const row = "1547219284950000000,a,x,m,1\n"
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "the file is empty"},
		{"no samples", header, "no samples"},
		{"other columns", "time,sensor,value\n", "r.csv:1:1: the columns are"},
		{"with a gateway", "time_unix_ns,gateway,sensor,metric,unit,value\n", "r.csv:1:1: the columns are"},
		{"few columns", header + row + "1547219284950000000,a,x\n", "r.csv:3:23: the line has 3 columns"},
		{"many columns", header + row + "1547219284950000000,a,x,m,1,2\n", "r.csv:3:27: the line has 6 columns"},
		{"time with a point", header + "1547219284.95,a,x,m,1\n", "r.csv:2:1: time \"1547219284.95\""},
		{"time in seconds", header + row + row + "1547219284,a,x,m,1\n", "r.csv:4:1: time 1970-01-01T00:00:01Z"},
		{"time before 1970", header + "-5,a,x,m,1\n", "r.csv:2:1: time out of bounds"},
		{"time in 2500", header + "9223372036854775807,a,x,m,1\n", "r.csv:2:1: time out of bounds"},
		{"sensor with a slash", header + "1547219284950000000,a/b,x,m,1\n", "r.csv:2:21: sensor name"},
		{"no metric", header + "1547219284950000000,a,,m,1\n", "r.csv:2:23: metric name is empty"},
		{"unit not UTF-8", header + "1547219284950000000,a,x,\xff,1\n", "r.csv:2:25: unit"},
		{"no value", header + "1547219284950000000,a,x,m,\n", "r.csv:2:27: value \"\""},
		{"text value", header + "1547219284950000000,a,x,m,high\n", "r.csv:2:27: value \"high\""},
		{"NaN", header + "1547219284950000000,a,x,m,NaN\n", "r.csv:2:27: value \"NaN\""},
		{"huge value", header + "1547219284950000000,a,x,m,1e999\n", "r.csv:2:27: value"},
		{"bare quote", header + row + "1547219284950000000,a\"b,x,m,1\n", `r.csv:3:22: bare "`},
		{"endless line", header + strings.Repeat("a", maxLineBytes+1), "a line has more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := readRecording(writeFile(t, "r.csv", c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v: want %q", err, c.want)
			}
		})
	}
	t.Run("not gzip", func(t *testing.T) {
		if _, err := readRecording(writeFile(t, "r.csv.gz", header)); err == nil || !strings.Contains(err.Error(), "not a gzip file") {
			t.Errorf("error %v: want it to say that the name lies", err)
		}
	})
}

func TestEncodePack_StaysBelowTheGatewaysLimit(t *testing.T) {
	long := strings.Repeat(`\`, touchline.MaxNameBytes)
	samples := make([]touchline.Sample, maxBatch)
	for i := range samples {
		samples[i] = touchline.Sample{Sensor: long, Metric: long, Unit: long, Time: 1547219284950000000, Value: touchline.NumberValue(-1.2345678901234567e-300)}
	}
	total := 0
	for rest := samples; len(rest) > 0; {
		body, n := encodePack(rest)
		if len(body) > maxPackBytes || n < 1 {
			t.Fatalf("a pack of %d samples has %d bytes: at most %d", n, len(body), maxPackBytes)
		}
		total, rest = total+n, rest[n:]
	}
	if total != maxBatch {
		t.Errorf("%d samples encoded: want %d", total, maxBatch)
	}
}

func TestPace_FollowsTheRecordingsClock(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(seconds float64) touchline.Sample { return touchline.Sample{Time: int64(seconds * 1e9)} }
	p := pace{began: began, firstNs: 50e9, speed: 10}
	n, due := p.batch([]touchline.Sample{at(60), at(61), at(69), at(71), at(72)})
	if n != 3 || !due.Equal(began.Add(1900*time.Millisecond)) {
		t.Errorf("batch of %d, due %s behind the start: want 3 samples after 1.9 s", n, due.Sub(began))
	}
	p.speed = 0
	if n, due := p.batch([]touchline.Sample{at(60), at(6000)}); n != 2 || !due.Equal(began) {
		t.Errorf("batch of %d, due %s: want both at once", n, due.Sub(began))
	}
}

func TestRateLimit_NeverGivesMoreThanItsRate(t *testing.T) {
	const perSecond = 500
	l := newRateLimit(perSecond)
	now := time.Unix(1000, 0)
	var given []time.Time
	for i := range 1000 {
		given = append(given, l.reserve(7, now.Add(time.Duration(i%10)*time.Millisecond)))
	}
	for i := range given {
		inSecond := 0
		for j := i; j < len(given) && given[j].Sub(given[i]) < time.Second; j++ {
			inSecond += 7
		}
		if inSecond > perSecond+7 {
			t.Fatalf("%d samples in the second from reservation %d: want at most %d and one message", inSecond, i, perSecond)
		}
	}
	later := given[999].Add(time.Hour)
	if got := l.reserve(7, later); !got.Equal(later) {
		t.Errorf("after an idle hour the wait is %s: want none", got.Sub(later))
	}
}
