package sensors

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"touchline"
)

// startHTTP serves until the test ends.
func startHTTP(t testing.TB, in *Intake, change func(*HTTPOptions), logger *slog.Logger) *httptest.Server {
	t.Helper()
	opts := HTTPOptions{
		BodyBytes: 1 << 20, MessageBytes: 64 << 10, MaxRequests: 100, MaxStreams: 100, Window: 1024, PingInterval: 10 * time.Second,
	}
	if change != nil {
		change(&opts)
	}
	h, err := NewHTTP(opts, in, logger)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(func() {
		if s, ok := in.store.(*memStore); ok {
			s.release()
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return server
}

func post(t *testing.T, url, contentType, body string) (*http.Response, problem) {
	t.Helper()
	r, err := http.Post(url, contentType, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p problem
	if len(text) > 0 {
		if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("the answer %q has content type %q", text, got)
		}
		if err := json.Unmarshal(text, &p); err != nil {
			t.Errorf("the answer %q: %v", text, err)
		}
		if p.Status != r.StatusCode || p.Type == "" || p.Title == "" || p.Detail == "" || p.Instance == "" {
			t.Errorf("the problem %q is not whole", text)
		}
	}
	return r, p
}

func TestPost_StoresEachFormat(t *testing.T) {
	number := func(metric string, v float64) touchline.Sample {
		return touchline.Sample{Sensor: "belt", Metric: metric, Value: touchline.NumberValue(v)}
	}
	for _, tc := range []struct {
		name, query, contentType, body string
		want                           []touchline.Sample // times apart
	}{
		{"object", "?sensor=belt", "application/json", `{"hr":142,"x":1.5}`, []touchline.Sample{number("hr", 142), number("x", 1.5)}},
		{"objects", "?sensor=belt", "application/json; charset=utf-8", ` [{"hr":1,"t":5},{"hr":2,"t":6}]`, []touchline.Sample{number("hr", 1), number("hr", 2)}},
		{"SenML as JSON", "", "application/json", `[{"n":"belt/hr","v":142}]`, []touchline.Sample{number("hr", 142)}},
		{"SenML JSON", "", "application/senml+json", `[{"bn":"belt/","n":"hr","v":142},{"n":"x","v":1.5}]`, []touchline.Sample{number("hr", 142), number("x", 1.5)}},
		{"SenML CBOR", "?sensor=belt", "Application/SenML+CBOR", "\x81\xa2\x00\x62hr\x02\x18\x8e", []touchline.Sample{number("hr", 142)}},
		{"bare value", "?sensor=belt&metric=hr", "text/plain", "142", []touchline.Sample{number("hr", 142)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := newStore(t)
			in := newTestIntake(t, store)
			server := startHTTP(t, in, nil, slog.New(slog.DiscardHandler))
			r, p := post(t, server.URL+SamplesPath+tc.query, tc.contentType, tc.body)
			if r.StatusCode != http.StatusNoContent {
				t.Fatalf("status %d: %+v", r.StatusCode, p)
			}
			got := store.stored()
			if len(got) != len(tc.want) {
				t.Fatalf("stored is %+v, want %+v", got, tc.want)
			}
			for i := range got {
				got[i].Time, tc.want[i].Stamped = 0, tc.name != "objects"
				if got[i] != tc.want[i] {
					t.Errorf("sample %d is %+v, want %+v", i, got[i], tc.want[i])
				}
			}
			if s := in.Stats(); s.Transports[TransportHTTP].Samples != uint64(len(tc.want)) || len(s.Sensors) != 1 || s.Sensors[0].Name != "belt" {
				t.Errorf("stats are %+v", s)
			}
		})
	}
}

func TestPost_AnswersAfterTheCommit(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	store.hold()
	answered := make(chan int)
	go func() {
		r, err := http.Post(server.URL+SamplesPath+"?sensor=belt", "application/json", strings.NewReader(`{"hr":1}`))
		if err != nil {
			answered <- 0
			return
		}
		r.Body.Close()
		answered <- r.StatusCode
	}()
	store.awaitQueued(t, 1)
	select {
	case status := <-answered:
		t.Fatalf("answered %d before the commit", status)
	default:
	}
	store.release()
	if status := <-answered; status != http.StatusNoContent {
		t.Fatalf("status %d, want 204", status)
	}
}

func TestPost_BadRequestsAreToldAndStoreNothing(t *testing.T) {
	ahead := fmt.Sprintf(`{"t":%d,"hr":1}`, time.Now().AddDate(101, 0, 0).UnixNano())
	for _, tc := range []struct {
		name, query, contentType, body string
		status                         int
		detail                         string
	}{
		{"not JSON", "?sensor=belt", "application/json", `{"hr":`, 400, ""},
		{"empty", "?sensor=belt", "application/json", ``, 400, ""},
		{"half good", "?sensor=belt", "application/json", `[{"hr":1},{"t":"yesterday","hr":2}]`, 400, "object 1 of the list"},
		{"a pack with a mistake", "?sensor=belt", "application/json", `[{"n":"hr","vv":1}]`, 400, ""},
		{"no sensor", "", "application/json", `{"hr":1}`, 400, "sensor"},
		{"sensor with a slash", "?sensor=a/b", "application/json", `{"hr":1}`, 400, "a/b"},
		{"sensor with NUL", "?sensor=a%00b", "application/json", `{"hr":1}`, 400, "control character"},
		{"sensor not UTF-8", "?sensor=%ff", "application/json", `{"hr":1}`, 400, "UTF-8"},
		{"long sensor", "?sensor=" + strings.Repeat("x", 129), "application/json", `{"hr":1}`, 400, "at most 128"},
		{"empty sensor", "?sensor=", "application/json", `{"hr":1}`, 400, "empty"},
		{"bad metric", "?sensor=a&metric=%23", "text/plain", `1`, 400, "metric"},
		{"before 1970", "?sensor=belt", "application/json", `{"t":-1,"hr":1}`, 400, "1970"},
		{"a century ahead", "?sensor=belt", "application/json", ahead, 400, "century"},
		{"name with a wildcard", "", "application/senml+json", `[{"n":"a+b/hr","v":1}]`, 400, ""},
		{"too large", "?sensor=belt", "application/json", `{"x":"` + strings.Repeat("x", 2<<20) + `"}`, 413, "1048576"},
		{"form", "?sensor=belt", "application/x-www-form-urlencoded", `{"hr":1}`, 415, "application/senml+json"},
		{"no type", "?sensor=belt", "", `{"hr":1}`, 415, "content type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := newStore(t)
			server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
			r, p := post(t, server.URL+SamplesPath+tc.query, tc.contentType, tc.body)
			if r.StatusCode != tc.status || !strings.Contains(p.Detail, tc.detail) {
				t.Errorf("status %d %+v, want %d and a detail with %q", r.StatusCode, p, tc.status, tc.detail)
			}
			if got := store.stored(); len(got) > 0 {
				t.Errorf("stored is %+v", got)
			}
		})
	}
	server := startHTTP(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	chunked, err := http.Post(server.URL+SamplesPath+"?sensor=a", "application/json", io.MultiReader(strings.NewReader(strings.Repeat(" ", 2<<20))))
	if err != nil {
		t.Fatal(err)
	}
	chunked.Body.Close()
	if chunked.StatusCode != 413 {
		t.Errorf("a large body of unknown length has status %d, want 413", chunked.StatusCode)
	}
}

func TestPost_FullStoreAndFailedCommitAre503(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	url := server.URL + SamplesPath + "?sensor=belt"
	store.setRefuse(full{1500 * time.Millisecond})
	r, p := post(t, url, "application/json", `{"hr":1}`)
	if r.StatusCode != 503 || r.Header.Get("Retry-After") != "2" || !strings.Contains(p.Detail, "nothing is stored") {
		t.Errorf("a full store gives %d %v %+v", r.StatusCode, r.Header, p)
	}
	store.setRefuse(nil)
	// A commit that found the disk full may have taken place all the same.
	store.setFail(full{1500 * time.Millisecond})
	r, p = post(t, url, "application/json", `{"hr":1}`)
	if r.StatusCode != 503 || r.Header.Get("Retry-After") != "2" || !strings.Contains(p.Detail, "unknown") {
		t.Errorf("a commit on a full disk gives %d %v %+v", r.StatusCode, r.Header, p)
	}
	store.setFail(errCommit)
	r, p = post(t, url, "application/json", `{"hr":1}`)
	if r.StatusCode != 503 || r.Header.Get("Retry-After") != "1" || !strings.Contains(p.Detail, "unknown") {
		t.Errorf("a failed commit gives %d %v %+v", r.StatusCode, r.Header, p)
	}
	store.setFail(nil)
	if r, p := post(t, url, "application/json", `{"hr":1}`); r.StatusCode != 204 {
		t.Errorf("afterwards %d %+v", r.StatusCode, p)
	}
}

func TestHTTP_OtherMethodsAndPaths(t *testing.T) {
	server := startHTTP(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		method, path string
		status       int
		header, want string
	}{
		{"GET", SamplesPath, 405, "Allow", "POST"},
		{"POST", StreamPath, 405, "Allow", "GET"},
		{"GET", StreamPath, 426, "Upgrade", "websocket"},
		{"GET", "/v1/other", 404, "Content-Type", "application/problem+json"},
	} {
		req, err := http.NewRequest(tc.method, server.URL+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != tc.status || r.Header.Get(tc.header) != tc.want {
			t.Errorf("%s %s gives %d with %s %q, want %d with %q", tc.method, tc.path, r.StatusCode, tc.header, r.Header.Get(tc.header), tc.status, tc.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestPost_TooManyAtATimeAre503(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), func(o *HTTPOptions) { o.MaxRequests = 1 }, slog.New(slog.DiscardHandler))
	url := server.URL + SamplesPath + "?sensor=belt"
	store.hold()
	answered := make(chan int)
	go func() {
		r, err := http.Post(url, "application/json", strings.NewReader(`{"hr":1}`))
		if err != nil {
			answered <- 0
			return
		}
		r.Body.Close()
		answered <- r.StatusCode
	}()
	store.awaitQueued(t, 1)
	if r, p := post(t, url, "application/json", `{"hr":2}`); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("the second request gives %d %+v", r.StatusCode, p)
	}
	store.release()
	if status := <-answered; status != 204 {
		t.Errorf("the first request gives %d", status)
	}
}

func TestPost_WorksWithCurl(t *testing.T) {
	curl := need(t, "curl")
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	run := func(body string) string {
		out, err := exec.Command(curl, "-s", "-w", "%{http_code} %{content_type}", "--json", body, server.URL+SamplesPath+"?sensor=belt").CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v\n%s", err, out)
		}
		return string(out)
	}
	if got := run(`{"hr":142}`); !strings.HasPrefix(got, "204") {
		t.Errorf("curl printed %q", got)
	}
	if got := run(`{"hr":`); !strings.HasSuffix(got, "400 application/problem+json") {
		t.Errorf("curl printed %q", got)
	}
	if got := store.stored(); len(got) != 1 || got[0].Value.Float() != 142 {
		t.Errorf("stored is %+v", got)
	}
}

func BenchmarkPost(b *testing.B) {
	store := newStore(b)
	store.discard = true
	server := startHTTP(b, newTestIntake(b, store), nil, slog.New(slog.DiscardHandler))
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	pack := `[{"bn":"belt/","n":"hr","v":142}` + strings.Repeat(`,{"n":"hr","v":143}`, 99) + `]`
	b.ResetTimer()
	for range b.N {
		r, err := client.Post(server.URL+SamplesPath, "application/senml+json", strings.NewReader(pack))
		if err != nil || r.StatusCode != 204 {
			b.Fatal(r, err)
		}
		r.Body.Close()
	}
	b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
}

func TestHTTP_RefusalDoesNotWaitForTheBody(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		name, line, headers, status string
	}{
		{"media type", "POST " + SamplesPath, "Content-Type: image/png", "415"},
		{"name", "POST " + SamplesPath + "?sensor=", "Content-Type: application/json", "400"},
		{"method", "PUT " + SamplesPath, "X-A: b", "405"},
		{"path", "POST /v1/other", "X-A: b", "404"},
		{"stream", "GET " + StreamPath, "X-A: b", "426"},
		{"handshake", "GET " + StreamPath, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 1", "400"},
		{"origin", "POST " + SamplesPath, "Content-Type: text/plain\r\nOrigin: http://evil.example", "403"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // each waits for the gateway's patience
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: gateway\r\n%s\r\nContent-Length: 1000\r\n\r\nabc", tc.line, tc.headers)
			answer, err := io.ReadAll(conn) // until the gateway closes
			if err != nil {
				t.Fatalf("the connection is held, with the answer %q: %v", answer, err)
			}
			if !strings.HasPrefix(string(answer), "HTTP/1.1 "+tc.status) {
				t.Errorf("the answer is %.80q, want %s", answer, tc.status)
			}
		})
	}
}

func TestPost_ConnectionLivesOnAfterARefusal(t *testing.T) {
	server := startHTTP(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(conn)
	for _, tc := range []struct {
		contentType string
		status      int
	}{{"image/png", 415}, {"text/plain", 204}, {"application/json", 400}, {"text/plain", 204}} {
		fmt.Fprintf(conn, "POST %s?sensor=belt&metric=hr HTTP/1.1\r\nHost: gateway\r\nContent-Type: %s\r\nContent-Length: 1\r\n\r\n7", SamplesPath, tc.contentType)
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", tc.contentType, err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		if answer.StatusCode != tc.status {
			t.Errorf("%s gives %d, want %d", tc.contentType, answer.StatusCode, tc.status)
		}
	}
}

func TestPost_PagesFromElsewhereCanNotWrite(t *testing.T) {
	store := newStore(t)
	in := newTestIntake(t, store)
	server := startHTTP(t, in, nil, slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		origin, site string
		status       int
	}{
		{"http://evil.example", "", 403}, {"http://evil.example", "cross-site", 403}, {"null", "", 403},
		{"", "cross-site", 403}, {"http://sub.evil.example", "same-site", 403},
		{"", "", 204}, {server.URL, "", 204}, {server.URL, "same-origin", 204},
	} {
		req, err := http.NewRequest("POST", server.URL+SamplesPath+"?sensor=belt&metric=hr", strings.NewReader("66"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "text/plain")
		if tc.origin != "" {
			req.Header.Set("Origin", tc.origin)
		}
		if tc.site != "" {
			req.Header.Set("Sec-Fetch-Site", tc.site)
		}
		before := len(store.stored())
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != tc.status || tc.status == 403 && r.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("origin %q, site %q: %d %q, want %d", tc.origin, tc.site, r.StatusCode, text, tc.status)
		}
		if stored := len(store.stored()) - before; stored != 0 && tc.status == 403 || stored == 0 && tc.status == 204 {
			t.Errorf("origin %q, site %q: %d samples are stored", tc.origin, tc.site, stored)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
