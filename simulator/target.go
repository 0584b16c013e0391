package simulator

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// A target is where a run sends to: one of three transports, and an address.
type target struct {
	scheme  string // mqtt, ws or http
	address string // host:port
}

// contentKind is what the messages of a run are made of.
type contentKind struct {
	mediaType string // as HTTP names it
}

var (
	plainObjects = contentKind{"application/json"}
	senmlPacks   = contentKind{"application/senml+json"}
)

// parseTarget reads mqtt://HOST:PORT, ws://HOST:PORT or http://HOST:PORT.
func parseTarget(to string) (target, error) {
	const want = "want mqtt://HOST:PORT, ws://HOST:PORT or http://HOST:PORT"
	if to == "" {
		return target{}, fmt.Errorf("no gateway to send to: %s", want)
	}
	u, err := url.Parse(to)
	if err != nil || !strings.Contains(to, "://") {
		return target{}, fmt.Errorf("gateway %q is not a URL: %s", to, want)
	}
	switch u.Scheme {
	case "mqtt", "ws", "http":
	default:
		return target{}, fmt.Errorf("gateway %q has the scheme %q: %s", to, u.Scheme, want)
	}
	if u.Hostname() == "" || strings.ContainsAny(u.Hostname(), "[]") { // net/url lets half of a pair through
		return target{}, fmt.Errorf("gateway %q has no host: %s", to, want)
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
		return target{}, fmt.Errorf("gateway %q has no port from 1 to 65535: %s", to, want)
	}
	if u.User != nil {
		return target{}, fmt.Errorf("gateway URL has a user name: sensors connect without one here; %s", want)
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return target{}, fmt.Errorf("gateway %q has something behind the port: %s", to, want)
	}
	return target{scheme: u.Scheme, address: net.JoinHostPort(u.Hostname(), u.Port())}, nil
}

// maxWindow returns how many messages may be in flight on one connection.
func (t target) maxWindow() int {
	if t.scheme == "http" {
		return 1 // the next POST waits for the answer to the last
	}
	return maxWindow
}

// dial makes the connection of one sensor. An error that wraps ErrRefused
// will come again.
func (t target) dial(ctx context.Context, sensor string, kind contentKind) (link, error) {
	switch t.scheme {
	case "mqtt":
		return dialMQTT(ctx, t.address, sensor)
	case "ws":
		return dialWebSocket(ctx, t.address, sensor)
	case "http":
		return dialHTTP(ctx, t.address, sensor, kind)
	}
	panic("BUG: scheme " + t.scheme)
}
