package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"touchline"
	"touchline/wire"
)

// Options says where the cloud is, who we are, and how patient to be. Start
// from Defaults: a zero duration is an error, not a default.
type Options struct {
	// URLs are the cloud's addresses, tried in order: one that fails gives
	// way to the next. ws and wss, or http and https for the same; without
	// a path wire.UplinkPath is meant. Credentials don't belong in them.
	URLs    []string
	Gateway string // our id; see touchline.CheckGateway
	// Token returns the credential, read afresh at each dial so that a new
	// token needs no restart. White space around it is dropped.
	Token func() (string, error)
	// Credential, where it is set, is asked in place of Token, for each
	// request: what it returns may be good for one, and for a short time.
	Credential func(ctx context.Context, nonce Nonce) (string, error)
	Software   string // name and version for the cloud's records: "touchline/0.1.0"
	// Clock is the gateway's clock. Nil is one that is set.
	Clock Clock
	// Corrections are what is to be told of it. Nil is nothing.
	Corrections Corrections

	// TLS returns what a wss connection to a host is encrypted by, where roots
	// are the authorities that are believed, nil for the system's. Nil checks
	// by the system's clock.
	TLS func(host string, roots *x509.CertPool) *tls.Config
	// Network says how the cloud is reached.
	Network Network
	// KnownStore is the id of the record store that this gateway delivers to,
	// "" where none is known yet. KeepStore keeps the first one, and one that
	// AcceptStore is given; it may block for a sync. Nil keeps nothing.
	KnownStore string
	KeepStore  func(id string) error

	// HandshakeTimeout bounds TCP connect, TLS and upgrade together, and then
	// once more the time from hello to welcome.
	HandshakeTimeout time.Duration
	// Heartbeat is the longest interval between pings; where the cloud
	// asks for a shorter one, that counts. A dead link is found in two.
	Heartbeat time.Duration
	// AcceptTimeout is how long the oldest block in flight may stay
	// unaccepted, while the window is not paused, before the connection is
	// given up for a new one.
	AcceptTimeout time.Duration
	// StoreTimeout is how long a block may stay accepted and not stored
	// before it is sent again. It doubles for a block with each time.
	StoreTimeout time.Duration
	// BackoffBase and BackoffCap shape the wait before dial n after a
	// failure: rand(0, min(cap, base·2ⁿ)).
	BackoffBase, BackoffCap time.Duration
	// Epoch is that of this opening of the buffer, by which the cloud tells two
	// boxes with one identity. Zero says nothing.
	Epoch touchline.Epoch
	// Limits says what of the link blocks may take.
	Limits Limits
	// ReturnAfter is how often what is preferred is tried again while something
	// else is in use: the first address, and a WebSocket where requests have
	// to do.
	ReturnAfter time.Duration
	// StableAfter is how long a session must stay up for n to be 0 again.
	StableAfter time.Duration
}

// A Nonce is the cloud's word against replays, for a credential of a gateway
// whose clock can't be trusted to say that it is fresh.
type Nonce struct {
	// Wanted says that the cloud has refused a credential because of our clock.
	Wanted bool
	// Fetch asks the cloud for one.
	Fetch func(ctx context.Context) (string, error)
}

// Defaults returns the timings that config.toml gives; the caller adds URLs,
// Gateway, Token and Software.
func Defaults() Options {
	return Options{
		HandshakeTimeout: 15 * time.Second,
		Heartbeat:        15 * time.Second,
		AcceptTimeout:    30 * time.Second,
		StoreTimeout:     60 * time.Second,
		BackoffBase:      time.Second,
		BackoffCap:       60 * time.Second,
		StableAfter:      60 * time.Second,
		ReturnAfter:      10 * time.Minute,
		Limits:           Limits{BacklogShare: 1},
	}
}

// maxURLs bounds the list of addresses; a site has two or three.
const maxURLs = 16

// validate reports all that is wrong at once, and returns the URLs in the form
// that the dialer takes.
func (o *Options) validate() ([]*url.URL, error) {
	var problems []error
	add := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	if n := len(o.URLs); n < 1 || n > maxURLs {
		add(fmt.Errorf("uplink.urls has %d addresses: want 1 to %d", n, maxURLs))
	}
	urls := make([]*url.URL, 0, len(o.URLs))
	for _, s := range o.URLs {
		u, err := parseURL(s)
		add(err)
		urls = append(urls, u)
	}
	add(touchline.CheckGateway(o.Gateway))
	if s := o.Software; s == "" || len(s) > touchline.MaxNameBytes || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		add(fmt.Errorf("uplink: software %.40q: want a name and version of at most %d printable ASCII characters", s, touchline.MaxNameBytes))
	}
	if o.Token == nil && o.Credential == nil {
		add(errors.New("uplink: no source of the token (uplink.token_file)"))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"handshake_timeout", o.HandshakeTimeout},
		{"heartbeat", o.Heartbeat},
		{"accept_timeout", o.AcceptTimeout},
		{"store_timeout", o.StoreTimeout},
		{"backoff_base", o.BackoffBase},
		{"backoff_cap", o.BackoffCap},
		{"stable_after", o.StableAfter},
		{"return_after", o.ReturnAfter},
	} {
		if d.value <= 0 || d.value > 24*time.Hour {
			add(fmt.Errorf("uplink.%s is %v: want more than 0 and at most 24h", d.name, d.value))
		}
	}
	add(o.Limits.validate())
	add(o.Network.validate())
	if o.BackoffCap < o.BackoffBase {
		add(fmt.Errorf("uplink.backoff_cap (%v) is below uplink.backoff_base (%v)", o.BackoffCap, o.BackoffBase))
	}
	return urls, errors.Join(problems...)
}

// parseURL turns an address as people write it into the one that is dialed.
// Its errors don't repeat what could be a credential.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err // without the address, which may hold a password
		}
		return nil, fmt.Errorf("parse address of the cloud: %w (want wss://host or ws://host:port)", err)
	}
	if u.User != nil {
		return nil, fmt.Errorf("address of the cloud %q holds a user or password: put the token into uplink.token_file", u.Redacted())
	}
	switch u.Scheme {
	case "ws", "wss":
	case "http":
		u.Scheme = "ws"
	case "https":
		u.Scheme = "wss"
	default:
		return nil, fmt.Errorf("address of the cloud %q begins with %q: want wss:// or ws://, as in wss://cloud.example.org", s, u.Scheme)
	}
	if u.Hostname() == "" || u.Opaque != "" {
		return nil, fmt.Errorf("address of the cloud %q has no host: want wss://host or ws://host:port", s)
	}
	if u.Fragment != "" {
		return nil, fmt.Errorf("address of the cloud %q has a fragment (#…), which a WebSocket address can't have", s)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = wire.UplinkPath
	}
	return u, nil
}

// shown is the address as logs and Stats show it: a query may hold a secret.
func shown(u *url.URL) string {
	c := *u
	c.User, c.RawQuery, c.ForceQuery = nil, "", false
	return c.String()
}
