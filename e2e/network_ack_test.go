package e2e

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"sync/atomic"
	"testing"

	"touchline/internal/netlab"
)

// TestNetwork_FlippedBitInAnAckLosesNothing changes one bit of the first
// acknowledgement, so that it calls stored what the cloud has never seen.
func TestNetwork_FlippedBitInAnAckLosesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	editFile(t, s.cloudConfig, "listen =", "window.bytes = \"256KiB\"\nlisten =")
	var flipped atomic.Bool
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := netlab.NewRelay(l, netlab.RelayOptions{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.cloudPort))
		return &ackFlipper{conn, &flipped}, err
	}})
	t.Cleanup(func() { r.Close() })
	r.Set(netlab.Faults{Up: netlab.Flow{BytesPerSecond: 500_000}}) // five blocks a second
	s.uplinkTo("ws://" + r.Addr())
	s.startGateway()
	const samples = 100_000 // in blocks of 10,000, of which the window takes three
	s.postBacklog(samples)
	s.startCloud()
	s.drained()
	if !flipped.Load() {
		t.Error("no bit was flipped")
	}
	v := &verdict{stored: samples}
	s.cloud.terminate()
	s.auditFile(v)
	if !v.holds() {
		t.Errorf("%s", v)
	}
}

// An ackFlipper flips one bit of the first range that is called stored: the one
// that makes its end the largest.
type ackFlipper struct {
	net.Conn
	flipped *atomic.Bool
}

var storedRange = regexp.MustCompile(`"stored":\[\{"epoch":"[0-9a-f]+","ranges":\[\[1,([0-9]+)\]`)

func (f *ackFlipper) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if f.flipped.Load() {
		return n, err
	}
	if at := storedRange.FindSubmatchIndex(p[:n]); at != nil {
		digit := &p[at[2]]
		was := *digit
		for bit := byte(1); bit <= 8; bit <<= 1 {
			if other := was ^ bit; other <= '9' && other > *digit {
				*digit = other
			}
		}
		f.flipped.Store(*digit != was)
	}
	return n, err
}
