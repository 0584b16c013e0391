// Package here tells whether an HTTP request comes from this machine itself:
// what its status and samples are shown to without a key. A proxy on this machine
// makes its clients look like that, so each sign of one counts.
package here

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Forwarded says whether a proxy is between. nginx, told nothing else, gives
// what it forwards its upstream's name as Host and no header that tells: but it
// speaks HTTP/1.0 then, up to its version 1.29, and nobody else does.
func Forwarded(r *http.Request) bool {
	if !r.ProtoAtLeast(1, 1) {
		return true
	}
	for name := range r.Header { // canonical
		if strings.HasPrefix(name, "X-Forwarded-") {
			return true
		}
	}
	for _, name := range []string{"Forwarded", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "Via"} {
		if r.Header.Values(name) != nil {
			return true
		}
	}
	return false
}

// Names says whether a Host is this machine's by its loopback address or as
// localhost. Any other name may be a stranger's that leads here (DNS rebinding),
// and any other address is what a proxy on this machine was asked for.
func Names(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") || host == "" {
		return true
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return err == nil && (addr.Unmap().IsLoopback() || addr.IsUnspecified()) // 0.0.0.0 leads to loopback
}
