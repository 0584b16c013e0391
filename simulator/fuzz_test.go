package simulator

import (
	"bytes"
	"compress/gzip"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline"
)

// FuzzReadRecording reads any file, plain and as gzip: a recording whose samples
// a gateway takes, or an error that names the file.
func FuzzReadRecording(f *testing.F) {
	const row = "1547219284950000000,a,x,m,1\n"
	for _, text := range []string{header, header + row, header + row + row, "", header + "1,a,x,m,1\n", header + "1547219284950000000,\"a\nb\",x,m,1e3\n", header + ",,,,\n", header + "\n\n" + row, "\xef\xbb\xbf" + header + row} {
		f.Add([]byte(text), false)
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write([]byte(text)); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(z.Bytes(), true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, zipped bool) {
		path := filepath.Join(dir, "r.csv")
		if zipped {
			path += ".gz"
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := readRecording(path)
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		samples := 0
		for sensor, list := range r.sensors {
			for _, s := range list {
				if err := errors.Join(touchline.CheckSensor(sensor), touchline.CheckMetric(s.Metric), touchline.CheckUnit(s.Unit)); err != nil || s.Sensor != sensor || s.Time < r.firstNs {
					t.Errorf("%+v of %q: %v", s, sensor, err)
				}
			}
			samples += len(list)
		}
		if samples != r.samples || samples == 0 {
			t.Errorf("%d samples are there, %d are counted", samples, r.samples)
		}
	})
}

// FuzzTarget reads where to send to: what is taken can be dialed.
func FuzzTarget(f *testing.F) {
	for _, text := range []string{"mqtt://127.0.0.1:1883", "ws://[::1]:1", "http://h:80/", "mqtt://u@h:1", "http://h:80?x", "mqtt://h:00001", "://", "mqtt://[::1%25eth0]:1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		to, err := parseTarget(text)
		if err != nil {
			return
		}
		if host, port, err := net.SplitHostPort(to.address); err != nil || host == "" || port == "" {
			t.Errorf("%q is taken as %q: %v", text, to.address, err)
		}
	})
}
