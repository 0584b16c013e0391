package netlab

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// An End is one end of a link: a device of a namespace, and its address.
type End struct {
	In      *Namespace
	Device  string       // at most 15 characters
	Address netip.Prefix // both ends in one network
}

// Veth joins two namespaces by a virtual cable without limits.
func Veth(a, b End) error {
	if err := a.In.Run("ip", "link", "add", a.Device, "type", "veth", "peer", "name", b.Device, "netns", b.In.path()); err != nil {
		return err
	}
	for _, e := range []End{a, b} {
		if err := e.up(); err != nil {
			return err
		}
	}
	return nil
}

// up gives the device its address and turns it on.
func (e End) up() error {
	if err := e.In.Run("ip", "address", "add", e.Address.String(), "dev", e.Device); err != nil {
		return err
	}
	return e.In.Run("ip", "link", "set", e.Device, "up")
}

// Route sends what is for network through via.
func (n *Namespace) Route(network netip.Prefix, via netip.Addr) error {
	return n.Run("ip", "route", "add", network.String(), "via", via.String())
}

// Limit bounds what leaves through the device with a token bucket. What does
// not fit waits for at most latency and is dropped then, as in a modem.
func (e End) Limit(bitsPerSecond int, latency time.Duration) error {
	// A bucket of 10 ms, and of two packets at least, hides no rate.
	burst := max(bitsPerSecond/8/100, 2*1600)
	return e.In.Run("tc", "qdisc", "replace", "dev", e.Device, "root", "tbf",
		"rate", strconv.Itoa(bitsPerSecond)+"bit", "burst", strconv.Itoa(burst), "latency", fmt.Sprintf("%dus", latency.Microseconds()))
}
