package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"touchline/uplink"
	"touchline/wire"
)

const (
	roundTrips = 5

	// loadPings of loadBytes each go to the cloud: 67 KB, which a line of
	// 256 kbit/s takes in 2 s. A session that was never begun carries nothing
	// else, and the cloud need not know of the measurement. It may answer the
	// last one only (RFC 6455, section 5.5.3).
	loadPings = 512
	loadBytes = 125

	maxClockOff = 10 * time.Second // of the cloud's; see credential.Leeway
)

// upgrade makes the handshake of the uplink, without beginning a session, and
// measures what comes back.
func (w *way) upgrade(ctx context.Context, name string) bool {
	token, err := w.o.Token(w.nonce(ctx))
	if err != nil {
		w.r.fail(name, err, "put the token there, or register this gateway with `touchline enroll CODE`")
		return false
	}
	dialer := websocket.Dialer{
		NetDialContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return w.lead.Dial(ctx, w.to) },
		NetDialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.lead.DialTLS(ctx, w.to) },
		Subprotocols:      []string{wire.Subprotocol}, HandshakeTimeout: stepTimeout,
	}
	to := *w.to
	if strings.Trim(to.Path, "/") == "" {
		to.Path = wire.UplinkPath
	}
	began := time.Now()
	conn, resp, err := dialer.DialContext(ctx, to.String(), http.Header{
		"Authorization": {"Bearer " + token}, wire.HeaderGateway: {w.o.Gateway}, "User-Agent": {w.o.Software},
	})
	if resp != nil {
		w.cloudClock(resp, began)
	}
	if err != nil {
		w.refused(name, resp, err)
		return false
	}
	defer conn.Close()
	if conn.Subprotocol() != wire.Subprotocol {
		w.r.add(name, Fail, fmt.Sprintf("what answers speaks %.40q, not %s", conn.Subprotocol(), wire.Subprotocol), "look at the address in uplink.urls")
		return false
	}
	w.r.ok(name, "WebSocket in %s, and %s is let in", round(time.Since(began)), w.o.Gateway)
	w.measure(ctx, conn)
	return true
}

// nonce asks the cloud for one, with which it lets in a gateway whose clock is
// wrong, or whose token it could have seen before it was started again. Where
// it gives none, the handshake will say why.
func (w *way) nonce(ctx context.Context) string {
	at := url.URL{Scheme: "http", Host: w.to.Host, Path: wire.NoncePath}
	if w.to.Scheme == "wss" {
		at.Scheme = "https"
	}
	client := w.lead.Client()
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return ""
	}
	resp, err := client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var answer wire.Nonce
	if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, 4<<10)).Decode(&answer) != nil {
		return ""
	}
	return answer.Nonce
}

// cloudClock compares clocks, by the middle of the handshake.
func (w *way) cloudClock(resp *http.Response, began time.Time) {
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return
	}
	off := began.Add(time.Since(began) / 2).Sub(theirs.Add(500 * time.Millisecond)).Round(time.Second)
	name := "cloud's clock " + w.to.Host
	if off.Abs() > maxClockOff {
		w.r.add(name, Warn, fmt.Sprintf("this one is %s off", off), "synchronise this machine's clock (NTP): the cloud corrects the samples' times, and each connection takes a round trip more")
		return
	}
	w.r.ok(name, "this one is within %s", maxClockOff)
}

// refused says who refused the upgrade: the cloud, which says why, or something
// in between.
func (w *way) refused(name string, resp *http.Response, err error) {
	if uplink.RefusedOurCertificate(err) {
		w.r.add("authentication "+w.to.Host, Fail, fmt.Sprintf("the client certificate of this gateway is not taken: %v", err), clientCertHint)
		return
	}
	if resp == nil || !errors.Is(err, websocket.ErrBadHandshake) {
		w.r.fail(name, fmt.Errorf("upgrade: %w", err), "something in between cuts WebSockets off: ask the network's operator to allow them to this address; the gateway falls back to plain HTTPS meanwhile")
		return
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // gorilla keeps 1 KiB of it
	var problem struct{ Detail string }
	ours := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json")
	_ = json.Unmarshal(body, &problem)
	switch {
	case resp.StatusCode == http.StatusUnauthorized || ours && resp.StatusCode == http.StatusForbidden:
		w.r.add("authentication "+w.to.Host, Fail, fmt.Sprintf("the cloud does not let %s in: %s %.300s", w.o.Gateway, resp.Status, problem.Detail),
			"look at gateway.id, uplink.token_file and uplink.client_cert, or register this gateway anew (`touchline-cloud gateway claim`, `touchline enroll`)")
	case ours:
		w.r.add(name, Fail, fmt.Sprintf("the cloud says %s: %.300s", resp.Status, problem.Detail), "tell the cloud's operator")
	case resp.StatusCode == http.StatusNotFound:
		w.r.add(name, Fail, "what answers knows no "+wire.UplinkPath+": it is no touchline cloud, or its load balancer lacks a route", "look at the address in uplink.urls")
	default:
		w.r.add(name, Fail, fmt.Sprintf("the upgrade to a WebSocket is answered with %s, not by the cloud (server %.60q)", resp.Status, resp.Header.Get("Server")),
			"a proxy, firewall or captive portal is in the way: ask the network's operator to allow WebSockets to this address; the gateway falls back to plain HTTPS meanwhile")
	}
}

// measure sends pings. What comes back says how long the way is, and how wide.
func (w *way) measure(ctx context.Context, conn *websocket.Conn) {
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	pongs := make(chan string, loadPings+roundTrips)
	conn.SetPongHandler(func(text string) error { pongs <- text; return nil })
	failed := make(chan error, 1)
	go func() {
		for {
			if _, _, err := conn.NextReader(); err != nil {
				failed <- err
				return
			}
		}
	}()
	defer func() { conn.Close(); <-failed }()
	sent := 0
	ping := func(n, bytes int) (time.Duration, error) {
		began, last := time.Now(), ""
		for range n {
			sent++
			last = fmt.Sprintf("%0*d", bytes, sent)
			if err := conn.WriteControl(websocket.PingMessage, []byte(last), deadline); err != nil {
				return 0, err
			}
		}
		for {
			select {
			case pong := <-pongs:
				if pong == last {
					return time.Since(began), nil
				}
			case err := <-failed:
				failed <- err
				return 0, err
			}
		}
	}
	var times []time.Duration
	for range roundTrips {
		took, err := ping(1, 4)
		if err != nil {
			w.r.fail("round trip "+w.to.Host, fmt.Errorf("no answer to a ping: %w", err), "something in between cuts the connection off, or swallows it: ask the network's operator")
			return
		}
		times = append(times, took)
	}
	slices.Sort(times)
	w.r.ok("round trip "+w.to.Host, "%s, the slowest of %d %s", round(times[roundTrips/2]), roundTrips, round(times[roundTrips-1]))
	took, err := ping(loadPings, loadBytes)
	if err != nil {
		w.r.fail("throughput "+w.to.Host, fmt.Errorf("the line does not carry %d KB: %w", loadPings*loadBytes/1000, err), "it is too slow or loses packets: look at signal, cable and what else uses it")
		return
	}
	// A frame has a header of 2 bytes and a mask of 4.
	speed := float64(loadPings*(loadBytes+6)*8) / max(took-times[0], time.Millisecond).Seconds() / 1e6
	w.r.ok("throughput "+w.to.Host, "at least %.1f Mbit/s to the cloud", speed)
}
