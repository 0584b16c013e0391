package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"touchline/internal/netlab"
)

// A venue is a site of which gateway and cloud are in networks of their own.
// Their ports on loopback are exposed, so that clients and audit reach both
// without the network between them.
type venue struct {
	*site
	gatewayNet, cloudNet *netlab.Namespace
}

// The network between the two.
const (
	gatewayAddress = "198.18.0.1"
	cloudAddress   = "198.18.0.2"
	cloudNetwork   = "198.18.0.0/30"
)

// newVenue makes a site whose networks are not joined yet. It skips where there
// are no namespaces.
func newVenue(t *testing.T, interval time.Duration) *venue {
	t.Helper()
	v := &venue{gatewayNet: newNamespace(t), cloudNet: newNamespace(t)}
	v.site = newSite(t, "")
	v.tuneNetwork(interval)
	editFile(t, v.cloudConfig, fmt.Sprintf(`"127.0.0.1:%d"`, v.cloudPort), fmt.Sprintf(`"0.0.0.0:%d"`, v.cloudPort))
	editFile(t, v.cloudConfig, "listen =", "insecure_read = true\nlisten =")
	v.uplinkTo(fmt.Sprintf("ws://%s:%d", cloudAddress, v.cloudPort))
	v.beginCloud, v.beginGateway = v.cloudNet.Start, v.gatewayNet.Start
	v.expose(v.cloudNet, v.cloudPort)
	v.expose(v.gatewayNet, v.mqtt)
	v.expose(v.gatewayNet, v.http)
	return v
}

func newNamespace(t *testing.T) *netlab.Namespace {
	t.Helper()
	n, err := netlab.NewNamespace()
	check(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

func (v *venue) expose(n *netlab.Namespace, port int) {
	v.t.Helper()
	r, err := n.Expose(port)
	check(v.t, err)
	v.t.Cleanup(func() { r.Close() })
}

// check fails on an error, and skips where that says that the system refuses.
func check(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, netlab.ErrRefused) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (v *venue) gatewayEnd() netlab.End {
	return netlab.End{In: v.gatewayNet, Device: "wan", Address: netip.MustParsePrefix(gatewayAddress + "/30")}
}

func (v *venue) cloudEnd() netlab.End {
	return netlab.End{In: v.cloudNet, Device: "venue", Address: netip.MustParsePrefix(cloudAddress + "/30")}
}

// tunnel joins the two by a link in user space, from the gateway to the cloud.
func (v *venue) tunnel(seed uint64, c netlab.Conditions) *netlab.Tunnel {
	v.t.Helper()
	t, err := netlab.NewTunnel(v.gatewayEnd(), v.cloudEnd(), seed, c)
	check(v.t, err)
	v.t.Cleanup(func() { t.Close() })
	return t
}

// cable joins the two by a cable without faults.
func (v *venue) cable() {
	v.t.Helper()
	check(v.t, netlab.Veth(v.gatewayEnd(), v.cloudEnd()))
}

// run starts both programs.
func (v *venue) run() {
	v.t.Helper()
	v.startCloud()
	v.startGateway()
}

// sessionPort waits for a session and returns its number, and the port of the
// gateway's side of it: of the same session, on a machine so busy that one may
// be replaced at any time.
func (v *venue) sessionPort() (session uint64, port int) {
	v.t.Helper()
	waitFor(v.t, "a session and its port", func() bool {
		session = v.session()
		port = v.uplinkPort()
		return port != 0 && v.session() == session
	})
	return session, port
}

// uplinkPort returns the port of the gateway's side of an open connection to
// the cloud, 0 where there is none.
func (v *venue) uplinkPort() (port int) {
	v.t.Helper()
	check(v.t, v.gatewayNet.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return err
		}
		const local, remote, state, established = 1, 2, 3, "01"
		for _, line := range strings.Split(string(table), "\n") {
			f := strings.Fields(line)
			if len(f) > state && f[state] == established && strings.HasSuffix(f[remote], fmt.Sprintf(":%04X", v.cloudPort)) {
				_, hex, _ := strings.Cut(f[local], ":")
				p, err := strconv.ParseInt(hex, 16, 32)
				port = int(p)
				return err
			}
		}
		return nil
	}))
	return port
}

// withEnvironment starts a program inside, with more in its environment.
func withEnvironment(begin func(*exec.Cmd) error, more ...string) func(*exec.Cmd) error {
	return func(cmd *exec.Cmd) error {
		cmd.Env = append(os.Environ(), more...)
		return begin(cmd)
	}
}
