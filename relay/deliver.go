package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"touchline/archive"
	"touchline/wire"
)

const (
	// maxRetryAfter bounds what a cloud may ask for.
	maxRetryAfter = 10 * time.Minute
	// saveEvery segments (16 MiB or so) it is written down how far an archive
	// is, so that a restart sends little again.
	saveEvery = 32
	// damagedSuffix is given to an archive that does not hold any more.
	damagedSuffix = ".damaged"
	// progressSuffix is that of a note beside the archive: a number.
	progressSuffix = ".sent"
)

// deliver sends an archive until it is stored or ctx ends, and then deletes it.
// One that does not hold any more is renamed, kept, and reported.
func (r *Relay) deliver(ctx context.Context, path string) {
	for failures := 0; ; failures++ {
		err := r.send(ctx, path)
		if ctx.Err() != nil {
			return
		}
		r.note(err)
		var wrong *archive.Error
		switch {
		case err == nil:
			if err := errors.Join(os.Remove(path), removeIfThere(path+progressSuffix), syncFolder(r.opts.Dir)); err != nil {
				r.log.Warn("an archive is stored in the cloud, and can't be deleted", "file", path, "error", err)
				r.note(err)
				pause(ctx, r.opts.BackoffCap) // or it would be sent again at once
				return
			}
			r.mu.Lock()
			r.stats.Delivered++
			r.mu.Unlock()
			r.log.Info("archive of another gateway is stored in the cloud", "file", filepath.Base(path))
			return
		case errors.As(err, &wrong):
			r.log.Error("an archive was damaged while it waited here: it is kept, and not sent; take it in again from where it came", "file", path+damagedSuffix, "error", err)
			if err := errors.Join(os.Rename(path, path+damagedSuffix), syncFolder(r.opts.Dir)); err != nil {
				r.note(err)
				pause(ctx, r.opts.BackoffCap)
			}
			return
		}
		r.log.Warn("archive can't be delivered now", "file", filepath.Base(path), "error", err)
		limit := r.opts.BackoffCap
		if failures < 16 {
			limit = min(limit, r.opts.BackoffBase<<failures)
		}
		wait := rand.N(limit)
		var later *refusal
		if errors.As(err, &later) {
			wait += later.after
			if later.status/100 == 4 { // a person has to do something
				wait = max(wait, r.opts.BackoffCap/2)
			}
		}
		pause(ctx, wait)
		if ctx.Err() != nil {
			return
		}
	}
}

// send sends the segments that were not sent before.
func (r *Relay) send(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	a, err := archive.NewReader(f)
	if err != nil {
		return err
	}
	sent := readProgress(path)
	for {
		seg, err := a.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if seg.Kind == archive.End || seg.Index < sent {
			continue
		}
		if err := r.post(ctx, a.Excerpt()); err != nil {
			saveProgress(path, seg.Index)
			return err
		}
		r.mu.Lock()
		r.stats.Segments++
		r.mu.Unlock()
		if seg.Index%saveEvery == saveEvery-1 {
			saveProgress(path, seg.Index+1)
		}
	}
}

// post sends one segment to the first address that takes it.
func (r *Relay) post(ctx context.Context, excerpt []byte) (err error) {
	for _, to := range r.urls {
		if err = r.postTo(ctx, to.String(), excerpt); err == nil {
			return nil
		}
	}
	return err
}

// A refusal is an answer other than 200.
type refusal struct {
	status int
	after  time.Duration
	detail string
}

func (e *refusal) Error() string {
	return fmt.Sprintf("the cloud does not take the archive: %d %s", e.status, e.detail)
}

func (r *Relay) postTo(ctx context.Context, to string, excerpt []byte) error {
	token, err := r.opts.Token()
	if err != nil {
		return fmt.Errorf("read uplink.token_file: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(excerpt))
	if err != nil {
		return fmt.Errorf("send archive: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
	req.Header.Set(wire.HeaderGateway, r.opts.Gateway)
	req.Header.Set("Content-Type", archive.MediaType)
	req.Header.Set("User-Agent", r.opts.Software)
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("send archive: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("send archive: %w", err)
	}
	var answer struct {
		Stored bool   `json:"stored"`
		Detail string `json:"detail"`
	}
	_ = json.Unmarshal(body, &answer) // what is no JSON says nothing is stored
	if resp.StatusCode == http.StatusOK && answer.Stored {
		return nil
	}
	if answer.Detail == "" {
		answer.Detail = fmt.Sprintf("what answers at %s is no touchline cloud that takes archives", to)
	}
	return &refusal{status: resp.StatusCode, after: retryAfter(resp.Header), detail: answer.Detail}
}

// retryAfter reads the header's form in seconds (RFC 9110, section 10.2.3).
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(min(seconds, 86400))*time.Second, maxRetryAfter)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// readProgress returns how many segments are stored; 0 where nothing is known:
// sending one again is no harm.
func readProgress(path string) uint64 {
	text, err := os.ReadFile(path + progressSuffix)
	if err != nil || len(text) > 20 {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// saveProgress is not synced, and may fail: it saves traffic, no more. It is
// written after the cloud said stored, so it is never ahead.
func saveProgress(path string, segments uint64) {
	draft := path + progressSuffix + ".new"
	if os.WriteFile(draft, []byte(strconv.FormatUint(segments, 10)+"\n"), 0o600) == nil {
		_ = os.Rename(draft, path+progressSuffix)
	}
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
