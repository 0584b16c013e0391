package cloud_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/payload"
)

var update = flag.Bool("update", false, "write the golden files anew")

// zoo has a sample of each kind and of each trouble.
func zoo() []touchline.Sample {
	at := time.Date(2026, 5, 30, 15, 4, 5, 123456789, time.UTC).UnixNano()
	var list []touchline.Sample
	add := func(sensor, metric, unit string, v touchline.Value) {
		list = append(list, touchline.Sample{Sensor: sensor, Metric: metric, Unit: unit, Time: at + int64(len(list)), Value: v})
	}
	for _, f := range []float64{142, 0.1, 1.0 / 3, math.Copysign(0, -1), 1e21, 5e-324, math.MaxFloat64, 1 << 53, math.NaN(), math.Inf(1), math.Inf(-1)} {
		add("belt-7", "heart_rate", "/min", touchline.NumberValue(f))
	}
	add("board", "state", "", touchline.TextValue(`half "time", 2:1`))
	add("board", "state", "", touchline.TextValue("two\r\nlines"))
	add("board", "state", "", touchline.TextValue(""))
	add("board", "state", "", touchline.TextValue("1"))
	add("board", "state", "", touchline.TextValue("Größe ✓ <&>"))
	add("gate, north", "open", "", touchline.BoolValue(true))
	add("gate, north", "open", "", touchline.BoolValue(false))
	add("strange", touchline.MetricRaw, "", touchline.BytesValue("\x00\xff\xfe?>"))
	return list
}

func TestQuery_FormatsAreGolden(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g, _ := n.join("arena")
	b := block(t, touchline.NewEpoch(), 1, zoo())
	g.send(b)
	g.stored(b)
	for format, contentType := range map[string]string{"csv": "text/csv; charset=utf-8", "json": "application/json", "senml": "application/senml+json"} {
		status, h, body := n.get("/v1/samples?format=" + format)
		if status != http.StatusOK || h.Get("Content-Type") != contentType {
			t.Errorf("%s: %d %v", format, status, h)
		}
		file := filepath.Join("testdata", "samples."+format)
		if *update {
			if err := os.WriteFile(file, []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if body != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", format, body, want)
		}
	}
}

func TestQuery_NumbersReadBackBitForBit(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		g, _ := n.join("arena")
		samples := zoo()[:11]
		b := block(t, touchline.NewEpoch(), 1, samples)
		g.send(b)
		g.stored(b)
		_, _, body := n.get("/v1/samples?metric=heart_rate")
		rows, err := csv.NewReader(strings.NewReader(body)).ReadAll()
		if err != nil || len(rows) != 1+len(samples) {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		for i, s := range samples {
			row := rows[1+i]
			f, err := strconv.ParseFloat(row[5], 64)
			if err != nil || math.Float64bits(f) != math.Float64bits(s.Value.Float()) && !(math.IsNaN(f) && math.IsNaN(s.Value.Float())) || row[0] != fmt.Sprint(s.Time) {
				t.Errorf("row %v, want %v at %d", row, s.Value.Float(), s.Time)
			}
		}
	}, "arena")
}

func TestQuery_SenMLIsWhatGatewaysRead(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g, _ := n.join("arena")
	var samples []touchline.Sample
	for _, s := range zoo() {
		if f := s.Value.Float(); !math.IsNaN(f) && !math.IsInf(f, 0) {
			samples = append(samples, s)
		}
	}
	b := block(t, touchline.NewEpoch(), 1, samples)
	g.send(b)
	g.stored(b)
	_, _, body := n.get("/v1/samples?format=senml")
	got, err := payload.NewDecoder().Decode(nil, payload.SenMLJSON, payload.Source{Now: time.Now().UnixNano()}, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(samples) {
		t.Fatalf("%d samples, want %d", len(got), len(samples))
	}
	want := map[touchline.Sample]bool{}
	for _, s := range samples {
		want[s] = true
	}
	for _, s := range got {
		if !want[s] {
			t.Errorf("%+v was not stored", s)
		}
	}
}

func TestQuery_SenMLSaysWhatItHasNoFormFor(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g, _ := n.join("arena")
	b := block(t, touchline.NewEpoch(), 1, append(readings(3, 5e9), zoo()...)) // a clock that was never set
	g.send(b)
	g.stored(b)
	status, h, body := n.get("/v1/samples?format=senml")
	if status != http.StatusUnprocessableEntity || h.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, "from=1978-07-04T21:24:16Z") {
		t.Errorf("%d %v %s", status, h, body)
	}
	if status, _, _ := n.get("/v1/samples?format=senml&from=1978-07-04T21:24:16Z"); status != http.StatusOK {
		t.Errorf("with the advice followed: %d", status)
	}
	if status, _, _ := n.get("/v1/samples"); status != http.StatusOK {
		t.Errorf("csv: %d", status)
	}
}

func TestQuery_EmptyAnswersAreWhole(t *testing.T) {
	n := start(t, options(), newMemory())
	for format, want := range map[string]string{"csv": "time_unix_ns,gateway,sensor,metric,unit,value,clock\n", "json": "[\n\n]\n", "senml": "[\n\n]\n"} {
		if status, _, body := n.get("/v1/samples?format=" + format); status != http.StatusOK || body != want {
			t.Errorf("%s: %d %q", format, status, body)
		}
	}
}

func TestQuery_SelectsByEachParameter(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		base := time.Date(2026, 5, 30, 15, 0, 0, 0, time.UTC).UnixNano()
		for _, id := range []string{"arena", "gym"} {
			g, _ := n.join(id)
			var samples []touchline.Sample
			for i := range int64(10) {
				for _, sensor := range []string{"belt-1", "belt-2"} {
					for _, metric := range []string{"hr", "speed"} {
						samples = append(samples, touchline.Sample{Sensor: sensor, Metric: metric, Time: base + i*1e9, Value: touchline.NumberValue(float64(i))})
					}
				}
			}
			b := block(t, touchline.NewEpoch(), 1, samples)
			g.send(b)
			g.stored(b)
		}
		ns := func(s int64) string { return fmt.Sprint(base + s*1e9) }
		for _, c := range []struct {
			query string
			rows  int
		}{
			{"", 80},
			{"gateway=&sensor=&metric=&from=&to=&format=", 80},
			{"gateway=gym", 40},
			{"sensor=belt-1", 40},
			{"metric=hr", 40},
			{"gateway=arena&sensor=belt-2&metric=speed", 10},
			{"gateway=nobody", 0},
			{"from=" + ns(3), 56}, // inclusive
			{"to=" + ns(3), 24},   // exclusive
			{"from=" + ns(3) + "&to=" + ns(4), 8},
			{"from=" + ns(3) + "&to=" + ns(3), 0},
			{"from=2026-05-30T15:00:03Z&to=2026-05-30T15:00:04Z", 8},
			{"from=" + url.QueryEscape("2026-05-30T17:00:03+02:00") + "&to=2026-05-30T15:00:03.000000001Z", 8},
			{"from=-9223372036854775808&to=9223372036854775807", 80},
		} {
			status, _, body := n.get("/v1/samples?" + c.query)
			rows, err := csv.NewReader(strings.NewReader(body)).ReadAll()
			if status != http.StatusOK || err != nil || len(rows)-1 != c.rows {
				t.Errorf("%s: %d, %d rows, %v; want %d", c.query, status, len(rows)-1, err, c.rows)
			}
		}
	}, "arena", "gym")
}

func TestQuery_BadParametersAreNamed(t *testing.T) {
	n := start(t, options(), newMemory())
	for query, want := range map[string]string{
		"limit=5":                            "limit",
		"sensor=a&sensor=b":                  "2 times",
		"format=xml":                         "senml",
		"from=yesterday":                     "RFC 3339",
		"from=2026-05-30T17:00:03+02:00":     "%2B",
		"from=9223372036854775808":           "RFC 3339",
		"to=3000-01-01T00:00:00Z":            "1678",
		"from=2&to=1":                        "after",
		"sensor=a/b":                         "'/'",
		"gateway=a%20b":                      "gateway",
		"metric=a%00b":                       "control character",
		"sensor=" + strings.Repeat("x", 129): "128",
		"a=%zz":                              "query",
		"a;b":                                "query",
	} {
		status, h, body := n.get("/v1/samples?" + query)
		if status != http.StatusBadRequest || h.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s; want 400 that names %s", query, status, body, want)
		}
	}
}

// many yields n samples, and then err.
func many(n int, err error) func(context.Context, cloud.Query, func(cloud.Record) error) error {
	return func(ctx context.Context, _ cloud.Query, yield func(cloud.Record) error) error {
		for i := range n {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := yield(cloud.Record{Gateway: "arena", Sample: readings(1, int64(i)*1e9)[0]}); err != nil {
				return err
			}
		}
		return err
	}
}

func TestQuery_FailureInTheMiddleIsVisible(t *testing.T) {
	for _, format := range []string{"csv", "json"} {
		store := newMemory()
		store.samples = many(10_000, errStore)
		n := start(t, options(), store)
		resp, err := http.Get("http://" + n.addr + "/v1/samples?format=" + format)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !errors.Is(err, io.ErrUnexpectedEOF) || len(body) == 0 {
			t.Errorf("%s: %d bytes, then %v: want %v", format, len(body), err, io.ErrUnexpectedEOF)
		}
		if st := n.server.Stats(); st.QueriesBroken != 1 || st.Queries != 0 {
			t.Errorf("stats are %+v", st)
		}
	}
}

func TestQuery_FailureAtTheStartIsAProblem(t *testing.T) {
	store := newMemory()
	store.samples = many(3, errStore)
	n := start(t, options(), store)
	if status, h, body := n.get("/v1/samples"); status != http.StatusInternalServerError || h.Get("Content-Type") != "application/problem+json" || strings.Contains(body, errStore.Error()) {
		t.Errorf("%d %v %s", status, h, body)
	}
}

func TestQuery_OverHTTP10IsRefused(t *testing.T) {
	opts := options()
	opts.InsecureRead = true
	n := start(t, opts, newMemory())
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/samples HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
	conn.SetDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(answer, []byte(" 505 ")) {
		t.Errorf("%s, %v", answer, err)
	}
}

func TestQuery_ReaderThatStandsStillIsCutOff(t *testing.T) {
	store := newMemory("arena")
	store.samples = many(math.MaxInt, nil)
	opts := options()
	opts.Timeouts.Answer = 50 * time.Millisecond
	n := start(t, opts, store)
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/samples HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") // and never reads
	eventually(t, "the query ends", func() bool { st := n.server.Stats(); return st.QueriesBroken == 1 && st.QueriesRunning == 0 })
}

func TestQuery_EndsWhenItsReaderLeaves(t *testing.T) {
	store := newMemory("arena")
	ended := make(chan error, 1)
	store.samples = func(ctx context.Context, _ cloud.Query, _ func(cloud.Record) error) error {
		<-ctx.Done() // an archive that finds nothing for long
		ended <- ctx.Err()
		return ctx.Err()
	}
	n := start(t, options(), store)
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+n.addr+"/v1/samples", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		eventually(t, "the query runs", func() bool { return n.server.Stats().QueriesRunning == 1 })
		cancel()
	}()
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Error("an answer came")
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the query goes on")
	}
}

func TestQuery_EndsWithTheServerAndIsVisiblyCutOff(t *testing.T) {
	store := newMemory("arena")
	store.samples = many(math.MaxInt, nil)
	n := start(t, options(), store)
	resp, err := http.Get("http://" + n.addr + "/v1/samples")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n.stop()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the answer looks complete")
	}
	n.end()
}

func TestQuery_MoreThanTheLimitAreRefused(t *testing.T) {
	store := newMemory("arena")
	hold := make(gate)
	store.samples = func(ctx context.Context, _ cloud.Query, _ func(cloud.Record) error) error { return hold.wait(ctx, nil) }
	opts := options()
	opts.MaxQueries = 1
	n := start(t, opts, store)
	first := make(chan int, 1)
	go func() {
		resp, err := http.Get("http://" + n.addr + "/v1/samples")
		if err != nil {
			first <- 0
			return
		}
		resp.Body.Close()
		first <- resp.StatusCode
	}()
	eventually(t, "a query runs", func() bool { return n.server.Stats().QueriesRunning == 1 })
	if status, h, _ := n.get("/v1/samples"); status != http.StatusServiceUnavailable || h.Get("Retry-After") == "" {
		t.Errorf("the second: %d %v", status, h)
	}
	close(hold)
	if status := <-first; status != http.StatusOK {
		t.Errorf("the first: %d", status)
	}
	eventually(t, "one after it is answered", func() bool { status, _, _ := n.get("/v1/samples"); return status == http.StatusOK })
}

func TestQuery_RowsDontWaitForOthers(t *testing.T) {
	store := newMemory("arena")
	hold := make(gate)
	store.samples = func(ctx context.Context, _ cloud.Query, yield func(cloud.Record) error) error {
		row := cloud.Record{Gateway: "arena", Sample: readings(1, 0)[0]}
		if err := yield(row); err != nil {
			return err
		}
		select { // an archive that took longer than a row may wait
		case <-time.After(1100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := yield(row); err != nil {
			return err
		}
		return hold.wait(ctx, nil)
	}
	n := start(t, options(), store)
	resp, err := http.Get("http://" + n.addr + "/v1/samples")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, len("time_unix_ns,gateway,sensor,metric,unit,value,clock\n0,arena"))); err != nil {
		t.Error(err)
	}
	close(hold)
}

func TestQuery_HeadHasNoBody(t *testing.T) {
	n := start(t, options(), newMemory())
	resp, err := http.Head("http://" + n.addr + "/v1/samples?format=json")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

func FuzzQueryParameters(f *testing.F) {
	for _, seed := range []string{"", "from=1&to=2", "format=senml", "sensor=%ff", "a;b", "from=2026-05-30T15:00:00Z", "gateway=x&gateway=y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := cloud.ParseQuery(raw)
		if err != nil {
			return
		}
		if q.From != nil && q.To != nil && *q.From > *q.To {
			t.Errorf("%q gives from %d after to %d", raw, *q.From, *q.To)
		}
		if q.Sensor != "" && touchline.CheckSensor(q.Sensor) != nil {
			t.Errorf("%q gives the sensor %q", raw, q.Sensor)
		}
	})
}

// What masks hide is shown where it is asked for, and says so.
func TestQuery_ReplacedSamplesAreMarked(t *testing.T) {
	store := newMemory("arena")
	store.samples = func(_ context.Context, q cloud.Query, yield func(cloud.Record) error) error {
		for i := range uint64(3) {
			if r := (cloud.Record{Gateway: "arena", Sample: touchline.Sample{Sensor: "belt", Metric: "hr", Time: 1_780_000_000e9, Value: touchline.NumberValue(1)}}); i == 1 {
				r.ReplacedBy = 7
				if q.Replaced {
					if err := yield(r); err != nil {
						return err
					}
				}
			} else if err := yield(r); err != nil {
				return err
			}
		}
		return nil
	}
	n := start(t, options(), store)
	for query, want := range map[string]string{
		"format=csv": "time_unix_ns,gateway,sensor,metric,unit,value,clock\n" +
			"1780000000000000000,arena,belt,hr,,1,\n1780000000000000000,arena,belt,hr,,1,\n",
		"format=csv&replaced=false": "time_unix_ns,gateway,sensor,metric,unit,value,clock\n" +
			"1780000000000000000,arena,belt,hr,,1,\n1780000000000000000,arena,belt,hr,,1,\n",
		"format=csv&replaced=true": "time_unix_ns,gateway,sensor,metric,unit,value,clock,replaced_by\n" +
			"1780000000000000000,arena,belt,hr,,1,,\n1780000000000000000,arena,belt,hr,,1,,7\n1780000000000000000,arena,belt,hr,,1,,\n",
	} {
		if status, _, body := n.get("/v1/samples?" + query); status != http.StatusOK || body != want {
			t.Errorf("%s: %d\n%s\nwant\n%s", query, status, body, want)
		}
	}
	for _, format := range []string{"json", "senml"} {
		status, _, body := n.get("/v1/samples?replaced=true&format=" + format)
		if status != http.StatusOK || strings.Count(body, `"replaced_by":7}`) != 1 || strings.Count(body, "replaced_by") != 1 {
			t.Errorf("%s: %d\n%s\nwant one of three replaced by 7", format, status, body)
		}
	}
	if status, _, body := n.get("/v1/samples?replaced=yes"); status != http.StatusBadRequest || !strings.Contains(body, "replaced") {
		t.Errorf("replaced=yes: %d %s", status, body)
	}
}
