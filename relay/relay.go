// Package relay carries archives of other gateways to the cloud: those of a
// venue whose line never returns. An archive that was taken in is on the disk,
// whole and verified, and stays there until the cloud has said of each of its
// segments that it is stored. The cloud believes the signature of the gateway
// that made it, not the one that carries it. Make it with New, give Run a
// goroutine, and end it by ending Run's context.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"touchline/archive"
	"touchline/wire"
)

// Options say where archives wait, and where they go.
type Options struct {
	Dir         string   // of the archives; made when the first one comes
	FreeReserve int64    // bytes that stay free on its file system
	URLs        []string // of the cloud, as uplink.urls; without any, archives wait
	Gateway     string   // who carries
	// Credential returns what a request shows, signed over the nonce that the
	// cloud asked for, or "".
	Credential func(nonce string) (string, error)
	// Store returns the id of the record store that this gateway delivers to,
	// or "" where that is not known yet; any is good then. Nil knows none.
	Store       func() (string, error)
	Software    string
	BackoffBase time.Duration // as of the uplink
	BackoffCap  time.Duration
	// Client leads to the cloud. Its redirects and timeout are set here, and
	// its idle connections closed when Run ends.
	Client *http.Client
}

// Stats says how archives get on.
type Stats struct {
	Waiting   int    // archives
	Bytes     int64  // …of the disk
	Delivered uint64 // archives, since the start
	Segments  uint64 // …that the cloud has stored, repeats included
	LastError string // "" after a success
}

// A Relay is the archives of one gateway's data folder. Its methods are safe
// for concurrent use.
type Relay struct {
	opts   Options
	urls   []*url.URL
	client http.Client
	log    *slog.Logger
	wake   chan struct{} // holds one: an archive was taken in

	mu    sync.Mutex // covers stats
	stats Stats
}

// requestTimeout bounds one segment: 1 MiB at 100 kbit/s are 84 s, and the
// cloud has half a minute for its commit.
const requestTimeout = 3 * time.Minute

// lookEvery is how often the folder is looked at for archives that another
// process put there.
const lookEvery = time.Minute

// New acquires nothing and starts nothing.
func New(opts Options, logger *slog.Logger) (*Relay, error) {
	r := &Relay{opts: opts, log: logger.With("component", "relay"), wake: make(chan struct{}, 1)}
	for _, s := range opts.URLs {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("relay: %w", err)
		}
		r.urls = append(r.urls, archiveURL(u))
	}
	if len(r.urls) > 0 && (opts.Credential == nil || opts.Client == nil || opts.BackoffBase <= 0 || opts.BackoffCap < opts.BackoffBase) {
		return nil, errors.New("relay: a source of the credential, a client and bounds of the delays are needed")
	}
	if opts.Client != nil {
		r.client = *opts.Client
	}
	r.client.Timeout = requestTimeout
	r.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // the token goes nowhere else
	r.look()
	return r, nil
}

// archiveURL is where a cloud, whose uplink is at u, takes archives.
func archiveURL(u *url.URL) *url.URL {
	to := *u
	to.Scheme = map[string]string{"ws": "http", "wss": "https"}[u.Scheme]
	if to.Scheme == "" {
		to.Scheme = u.Scheme
	}
	to.Path = strings.TrimSuffix(to.Path, "/")
	if to.Path == "" {
		to.Path = wire.UplinkPath
	}
	to.Path += strings.TrimPrefix(wire.ArchivePath, wire.UplinkPath)
	return &to
}

// Stats returns the counters.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// waiting returns the archives in the folder, those first taken in first.
func (r *Relay) waiting() ([]os.FileInfo, error) {
	entries, err := os.ReadDir(r.opts.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for archives: %w", err)
	}
	var list []os.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && strings.HasSuffix(e.Name(), archive.Suffix) && e.Name()[0] != '.' {
			list = append(list, info)
		}
	}
	slices.SortStableFunc(list, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	return list, nil
}

// look renews what Stats says of the folder.
func (r *Relay) look() []os.FileInfo {
	list, err := r.waiting()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.stats.LastError = err.Error()
		return nil
	}
	r.stats.Waiting, r.stats.Bytes = len(list), 0
	for _, info := range list {
		r.stats.Bytes += info.Size()
	}
	return list
}

// Run delivers archives until ctx ends, and returns nil then. Nothing that goes
// wrong ends it: it is tried again, and Stats says what it was.
func (r *Relay) Run(ctx context.Context) error {
	defer r.client.CloseIdleConnections()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, info := range r.look() {
			if len(r.urls) == 0 || ctx.Err() != nil {
				break
			}
			r.deliver(ctx, filepath.Join(r.opts.Dir, info.Name()))
			r.look()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-tick.C:
		}
	}
}

func (r *Relay) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stats.LastError = ""; err != nil {
		r.stats.LastError = err.Error()
	}
}
