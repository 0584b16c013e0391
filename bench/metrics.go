package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// metrics are the series of one scrape by name and labels as they are
// written, name{label="value"}.
type metrics map[string]float64

// parseMetrics reads the text form of Prometheus (version 0.0.4), of which it
// needs series without timestamps whose label values have no blanks.
func parseMetrics(r io.Reader) (metrics, error) {
	m := metrics{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		cut := strings.LastIndexByte(line, ' ')
		if cut < 0 {
			return nil, fmt.Errorf("metrics line %d: %.80q has no value", n, line)
		}
		v, err := strconv.ParseFloat(line[cut+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metrics line %d: value %.40q is no number", n, line[cut+1:])
		}
		m[line[:cut]] = v
	}
	return m, lines.Err()
}

// value returns one series, and an error that names it where it is absent.
func (m metrics) value(series string) (float64, error) {
	v, ok := m[series]
	if !ok {
		return 0, fmt.Errorf("metrics have no %s", series)
	}
	return v, nil
}

// histogram returns the buckets of a histogram without other labels.
func (m metrics) histogram(name string) (buckets, error) {
	var out buckets
	for series, count := range m {
		bound, ok := strings.CutPrefix(series, name+`_bucket{le="`)
		if !ok {
			continue
		}
		seconds, err := strconv.ParseFloat(strings.TrimSuffix(bound, `"}`), 64) // +Inf as well
		if err != nil {
			return nil, fmt.Errorf("metrics: bucket %q of %s is no number", bound, name)
		}
		out = append(out, bucket{seconds, count})
	}
	if out == nil {
		return nil, fmt.Errorf("metrics have no histogram %s", name)
	}
	slices.SortFunc(out, func(a, b bucket) int {
		if a.seconds < b.seconds {
			return -1
		}
		return 1
	})
	return out, nil
}

// httpClient asks the processes under test.
var httpClient = &http.Client{Timeout: 10 * time.Second}

func get(ctx context.Context, url string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: status %s", url, resp.Status)
	}
	if err := read(resp.Body); err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	return nil
}

func scrape(ctx context.Context, url string) (m metrics, err error) {
	err = get(ctx, url, func(r io.Reader) error {
		m, err = parseMetrics(r)
		return err
	})
	return m, err
}

func getJSON(ctx context.Context, url string, into any) error {
	return get(ctx, url, func(r io.Reader) error { return json.NewDecoder(r).Decode(into) })
}
