package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"

	"touchline/internal/netlab"
)

// TestNetwork_ProxiesLeadOut has a venue from which only a proxy leads out, and
// tells the gateway so by its environment.
func TestNetwork_ProxiesLeadOut(t *testing.T) {
	guard := netlab.Credentials{User: "venue", Password: "s3cret"}
	for _, tc := range []struct {
		name, awaited, scheme string
		greet                 func(net.Conn) (string, net.Conn, error)
	}{
		{"CONNECT", httpProxy, "http://", netlab.GreetCONNECT(netlab.Credentials{})},
		{"CONNECT with Basic", httpProxy, "http://venue:s3cret@", netlab.GreetCONNECT(guard)},
		{"SOCKS5", socksProxy, "socks5://", netlab.GreetSOCKS(netlab.Credentials{})},
		{"SOCKS5 with password", socksProxy, "socks5://venue:s3cret@", netlab.GreetSOCKS(guard)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			await(t, tc.awaited)
			t.Parallel()
			v := newVenue(t, heartbeat)
			v.cable()
			// The way past the proxy is closed; the proxy itself dials locally.
			check(t, v.cloudNet.Drop(netlab.Input, fmt.Sprintf("iifname %q tcp dport %d", v.cloudEnd().Device, v.cloudPort)))
			l, err := v.cloudNet.Listen(cloudAddress + ":3128")
			check(t, err)
			proxy := netlab.NewRelay(l, netlab.RelayOptions{Greet: tc.greet, Dial: func(ctx context.Context, target string) (net.Conn, error) {
				return v.cloudNet.DialContext(ctx, "tcp", target)
			}})
			t.Cleanup(func() { proxy.Close() })
			address := tc.scheme + l.Addr().String()
			v.beginGateway = withEnvironment(v.beginGateway, "HTTP_PROXY="+address, "HTTPS_PROXY="+address, "NO_PROXY=")
			v.run()
			session := v.session()
			c := v.publish(networkCrowd(500)...)
			c.more(t, 500)
			proxy.Cut()
			v.sessionAfter(session)
			v.settle(c)
		})
	}
}

// TestNetwork_RefusedUpgradesFallBack has a middlebox that never lets an upgrade
// through: the same frames go as plain requests.
func TestNetwork_RefusedUpgradesFallBack(t *testing.T) {
	await(t, fallback)
	for _, status := range []int{http.StatusForbidden, http.StatusUpgradeRequired, http.StatusOK} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "")
			cloud := fmt.Sprintf("127.0.0.1:%d", s.cloudPort)
			box := relayTo(t, cloud, netlab.RelayOptions{Greet: netlab.GreetRefusingUpgrades(cloud, status)})
			s.uplinkTo("ws://" + box.Addr())
			s.startCloud()
			s.startGateway()
			c := s.publish(networkCrowd(500)...)
			c.more(t, 500)
			s.session()
			box.Cut()
			c.more(t, 500)
			s.settle(c)
		})
	}
}

// TestNetwork_ReturnsToTheFirstAddress takes the first of two addresses away and
// gives it back.
func TestNetwork_ReturnsToTheFirstAddress(t *testing.T) {
	await(t, backToFirst)
	t.Parallel()
	s := newSite(t, "")
	cloud := fmt.Sprintf("127.0.0.1:%d", s.cloudPort)
	first, second := relayTo(t, cloud, netlab.RelayOptions{}), relayTo(t, cloud, netlab.RelayOptions{})
	s.uplinkTo("ws://"+first.Addr(), "ws://"+second.Addr())
	editFile(t, s.gatewayConfig, "reconnect_min", "return_after = \"1s\"\nreconnect_min")
	s.startCloud()
	s.startGateway()
	c := s.publish(networkCrowd(500)...)
	session := s.session()
	first.Set(netlab.Faults{Up: netlab.Flow{Blackhole: true}})
	first.Cut()
	s.sessionAfter(session)
	c.more(t, 500)
	if second.Open() != 1 {
		t.Errorf("%d connections by the second address", second.Open())
	}
	first.Set(netlab.Faults{})
	waitFor(t, "the first address to be used again", func() bool { return first.Open() == 1 && second.Open() == 0 })
	s.session()
	s.settle(c)
}
