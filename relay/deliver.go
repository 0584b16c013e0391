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
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"touchline/archive"
	"touchline/internal/folder"
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
	// progressSuffix is that of a note beside the archive: how many of its
	// segments are stored, and in which record store.
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
			if err := errors.Join(removeIfThere(path+progressSuffix), os.Remove(path), folder.Sync(r.opts.Dir)); err != nil {
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
			if err := errors.Join(os.Rename(path, path+damagedSuffix), folder.Sync(r.opts.Dir)); err != nil {
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
	store, err := r.store()
	if err != nil {
		return err
	}
	sent := readProgress(path, store)
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
		if err := r.post(ctx, a.Excerpt(), &store); err != nil {
			saveProgress(path, seg.Index, store)
			return err
		}
		r.mu.Lock()
		r.stats.Segments++
		r.mu.Unlock()
		if seg.Index%saveEvery == saveEvery-1 {
			saveProgress(path, seg.Index+1, store)
		}
	}
}

// store returns the record store that is delivered to, "" where it is not known.
func (r *Relay) store() (string, error) {
	if r.opts.Store == nil {
		return "", nil
	}
	return r.opts.Store()
}

// post sends one segment to the first address that takes it. All of an archive
// goes to one record store: *store, which the first answer decides where it is
// not known.
func (r *Relay) post(ctx context.Context, excerpt []byte, store *string) (err error) {
	for _, to := range r.urls {
		var id string
		if id, err = r.postTo(ctx, to, excerpt); err != nil {
			continue
		}
		if *store == "" {
			*store = id
		}
		if id == *store {
			return nil
		}
		err = fmt.Errorf("the record store at %s is %s, and this gateway delivers to %s: the archive stays here until a person agrees (`touchline uplink accept-store`)", to, id, *store)
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

// postTo sends one segment, and returns in which record store it is. A cloud
// that does not find the credential fresh is asked for a nonce, once.
func (r *Relay) postTo(ctx context.Context, to *url.URL, excerpt []byte) (store string, err error) {
	store, err = r.try(ctx, to, excerpt, "")
	var refused *refusal
	if !errors.As(err, &refused) || refused.status != http.StatusUnauthorized {
		return store, err
	}
	nonce, none := r.nonce(ctx, to)
	if none != nil {
		return "", err
	}
	return r.try(ctx, to, excerpt, nonce)
}

func (r *Relay) try(ctx context.Context, to *url.URL, excerpt []byte, nonce string) (store string, err error) {
	token, err := r.opts.Credential(nonce)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(excerpt))
	if err != nil {
		return "", fmt.Errorf("send archive: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
	req.Header.Set(wire.HeaderGateway, r.opts.Gateway)
	req.Header.Set("Content-Type", archive.MediaType)
	var answer struct {
		Stored bool   `json:"stored"`
		Store  string `json:"store"`
		Detail string `json:"detail"`
	}
	resp, err := r.ask(req, &answer)
	if err != nil {
		return "", fmt.Errorf("send archive: %w", err)
	}
	if resp.StatusCode == http.StatusOK && answer.Stored && answer.Store != "" {
		return answer.Store, nil
	}
	if answer.Detail == "" {
		answer.Detail = fmt.Sprintf("what answers at %s is no touchline cloud that takes archives", to)
	}
	return "", &refusal{status: resp.StatusCode, after: retryAfter(resp.Header), detail: answer.Detail}
}

// nonce fetches one.
func (r *Relay) nonce(ctx context.Context, to *url.URL) (string, error) {
	at := *to
	at.Path = strings.TrimSuffix(to.Path, wire.ArchivePath) + wire.NoncePath
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return "", fmt.Errorf("fetch nonce: %w", err)
	}
	var answer wire.Nonce
	resp, err := r.ask(req, &answer)
	if err == nil && (resp.StatusCode != http.StatusOK || answer.Nonce == "") {
		err = fmt.Errorf("the cloud answers %s", resp.Status)
	}
	if err != nil {
		return "", fmt.Errorf("fetch nonce: %w", err)
	}
	return answer.Nonce, nil
}

// maxAnswerBytes bounds what is read of an answer.
const maxAnswerBytes = 4 << 10

// ask sends a request and reads its answer. What is no JSON says nothing.
func (r *Relay) ask(req *http.Request, answer any) (*http.Response, error) {
	req.Header.Set("User-Agent", r.opts.Software)
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, err
	}
	_ = json.Unmarshal(body, answer)
	return resp, nil
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

// readProgress returns how many segments are stored in a record store; 0 where
// nothing is known: sending one again is no harm.
func readProgress(path, store string) uint64 {
	text, err := os.ReadFile(path + progressSuffix)
	if err != nil || len(text) > maxAnswerBytes {
		return 0
	}
	number, at, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), " ")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || store == "" || at != store {
		return 0
	}
	return n
}

// saveProgress is not synced, and may fail: it saves traffic, no more. It is
// written after the cloud said stored, so it is never ahead.
func saveProgress(path string, segments uint64, store string) {
	draft := path + progressSuffix + ".new"
	if os.WriteFile(draft, fmt.Appendf(nil, "%d %s\n", segments, store), 0o600) == nil {
		_ = os.Rename(draft, path+progressSuffix)
	}
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
