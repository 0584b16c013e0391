package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"touchline"
	"touchline/daemon"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// settings are the defaults with free ports, a folder of their own, and what
// the test changes.
func settings(t *testing.T, change map[string]string) touchline.Config {
	t.Helper()
	flags := map[string]string{
		"gateway.id": "g1", "gateway.data": t.TempDir(),
		"sensors.mqtt.listen": "127.0.0.1:0", "sensors.http.listen": "127.0.0.1:0",
	}
	for key, value := range change {
		flags[key] = value
	}
	c, _, err := touchline.LoadConfig("", nil, flags)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run opens and runs a gateway, and ends it with the test.
func run(t *testing.T, c touchline.Config) *daemon.Daemon {
	t.Helper()
	d, err := daemon.Open(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		for range 2 { // twice is fine
			if err := d.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	return d
}

func TestRun_StatusMetricsAndSamplesAgree(t *testing.T) {
	d := run(t, settings(t, nil))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	base := "http://" + d.HTTPAddr()
	resp, err := client.Post(base+"/v1/samples?sensor=belt-1", "application/json", strings.NewReader(`{"heart_rate":142,"x":1.5}`))
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatal(err, resp)
	}
	resp.Body.Close()

	var s daemon.Status
	if err := json.Unmarshal(get(t, client, base+"/v1/status"), &s); err != nil {
		t.Fatal(err)
	}
	if s.Gateway != "g1" || s.Sensors.Samples != 2 || len(s.Sensors.Seen) != 1 || s.Sensors.Seen[0].ID != "belt-1" ||
		s.Buffer.Samples != 2 || s.Buffer.Appended != 2 || s.Buffer.State != "ok" || s.Uplink.State != "off" {
		t.Errorf("status: %+v", s)
	}
	metrics := string(get(t, client, base+"/metrics"))
	for _, want := range []string{
		`touchline_sensor_samples_total{transport="http"} 2`, `touchline_buffer_samples 2`,
		`touchline_buffer_appended_samples_total 2`, `touchline_buffer_state{state="ok"} 1`,
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
	get(t, client, base+"/healthz")
	get(t, client, base+"/readyz")
}

func get(t *testing.T, client *http.Client, url string) []byte {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %v %s", url, resp.Status, err, body)
	}
	return body
}

// TestOpen_ReleasesWhatItTook lets the last thing that Open takes fail, and
// opens the same folder and ports again.
func TestOpen_ReleasesWhatItTook(t *testing.T) {
	c := settings(t, nil)
	broken := c
	broken.Uplink.URLs, broken.Uplink.TokenFile = []string{"ws://127.0.0.1:1"}, c.Gateway.Data+"/none"
	if _, err := daemon.Open(t.Context(), broken, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "uplink.token_file") {
		t.Fatalf("have %v, want an error that names uplink.token_file", err)
	}
	run(t, c)
}

func TestOpen_NamesThePortInUse(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, key := range []string{"sensors.mqtt.listen", "sensors.http.listen"} {
		_, err := daemon.Open(t.Context(), settings(t, map[string]string{key: busy.Addr().String()}), slog.New(slog.DiscardHandler))
		want := fmt.Sprintf("%s: %s is in use", key, busy.Addr())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("have %v, want %s", err, want)
		}
	}
}

// TestRun_WithoutListenersAndUplink holds that what is off is not missed.
func TestRun_WithoutListenersAndUplink(t *testing.T) {
	d := run(t, settings(t, map[string]string{"sensors.mqtt.listen": "", "sensors.http.listen": ""}))
	if d.MQTTAddr() != "off" || d.HTTPAddr() != "off" {
		t.Errorf("listening on %s and %s", d.MQTTAddr(), d.HTTPAddr())
	}
}

// TestHTTP_ConnectionsAreLimited opens more connections than there may be:
// the surplus waits in the system's queue, and MQTT still takes sensors.
func TestHTTP_ConnectionsAreLimited(t *testing.T) {
	const most = 5
	d := run(t, settings(t, map[string]string{"sensors.max_connections": "5"}))
	answered := make(chan struct{}, 1000)
	for range daemon.SpareRequests + most + 20 {
		c, err := net.Dial("tcp", d.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		go func() {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				answered <- struct{}{}
			}
		}()
	}
	for range daemon.SpareRequests + most {
		<-answered
	}
	select {
	case <-answered:
		t.Error("a connection beyond the limit was answered while all others were open")
	default:
	}
	c, err := net.Dial("tcp", d.MQTTAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a")); err != nil {
		t.Fatal(err)
	}
	connack := make([]byte, 4)
	if _, err := io.ReadFull(c, connack); err != nil || connack[0] != 0x20 || connack[3] != 0 {
		t.Errorf("connack %x, %v", connack, err)
	}
}
