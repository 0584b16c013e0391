package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"touchline"
)

// settingsOf is a gateway's that listens nowhere.
func settingsOf(t *testing.T, more map[string]string) touchline.Config {
	t.Helper()
	all := map[string]string{"gateway.id": "g1", "gateway.data": t.TempDir(), "sensors.mqtt.listen": "", "sensors.http.listen": ""}
	for key, value := range more {
		all[key] = value
	}
	c, _, err := touchline.LoadConfig("", nil, all)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openDaemon(t *testing.T, c touchline.Config) *Daemon {
	t.Helper()
	d, err := Open(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestReload_NobodyWaitsForItsFiles: the watchdog's loop tells a status, and a
// disk that does not answer a reload is no reason to end the gateway.
func TestReload_NobodyWaitsForItsFiles(t *testing.T) {
	c := settingsOf(t, nil)
	d := openDaemon(t, c)
	_, err := d.Reload(func() (touchline.Config, error) {
		told := make(chan Status, 1)
		go func() { told <- d.Status() }()
		timer := time.NewTimer(time.Minute)
		defer timer.Stop()
		select {
		case <-told:
		case <-timer.C:
			t.Error("a status waits for the settings to be read")
		}
		return c, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestReload_TakesUpPasswords that were changed in the files that the settings
// name: of the proxy to the cloud, and of the site's broker.
func TestReload_TakesUpPasswords(t *testing.T) {
	proxy, broker := heardAt(t), heardAt(t)
	files := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(files, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := settingsOf(t, map[string]string{
		"uplink.urls": "ws://cloud.invalid", "uplink.reconnect_min": "50ms", "uplink.reconnect_max": "100ms", "uplink.token_file": write("token", "t"),
		"uplink.proxy": "http://" + proxy.address, "uplink.proxy_password_file": write("proxy", "venue:first"),
	})
	c.Sensors.Broker = []touchline.BrokerConfig{{
		URL: "mqtt://" + broker.address, Topics: []string{"sensors/#"}, Username: "venue", PasswordFile: write("broker", "first-word"),
	}}
	d := openDaemon(t, c)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	basic := func(word string) string { return base64.StdEncoding.EncodeToString([]byte("venue:" + word)) }
	proxy.wait(t, basic("first"))
	broker.wait(t, "first-word")

	load := func() (touchline.Config, error) { return c, nil }
	if _, err := d.Reload(load); err != nil || len(d.Status().Reload.Changed) > 0 {
		t.Errorf("nothing was changed: %+v, %v", d.Status().Reload, err)
	}
	write("proxy", "venue:second")
	write("broker", "second-word")
	if _, err := d.Reload(load); err != nil {
		t.Error(err)
	}
	if got := d.Status().Reload.Changed; !slices.Equal(got, []string{"sensors.broker", "uplink.proxy_password_file"}) {
		t.Errorf("it says that %q were changed", got)
	}
	proxy.wait(t, basic("second"))
	broker.wait(t, "second-word")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A heard listens to what clients say first, and hangs up.
type heard struct {
	address string
	said    chan []byte
}

func heardAt(t *testing.T) *heard {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{address: l.Addr().String(), said: make(chan []byte)}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			text := make([]byte, 4<<10)
			n, _ := conn.Read(text) // a client that says nothing has said nothing
			conn.Close()
			select {
			case h.said <- text[:n]:
			case <-over:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(over)
		l.Close()
		<-ended
	})
	return h
}

// wait ends when a client has said word.
func (h *heard) wait(t *testing.T, word string) {
	t.Helper()
	timer := time.NewTimer(2 * time.Minute)
	defer timer.Stop()
	for {
		select {
		case said := <-h.said:
			if bytes.Contains(said, []byte(word)) {
				return
			}
		case <-timer.C:
			t.Fatalf("nobody said %q", word)
		}
	}
}
