package netlab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Hook is where a packet passes the firewall of a namespace.
type Hook string

// The hooks of a firewall.
const (
	Input   Hook = "input"   // for a program inside
	Output  Hook = "output"  // from a program inside
	Forward Hook = "forward" // passing through
)

// Drop swallows packets that match, an expression of nft(8) such as "tcp dport
// 8090"; nobody is told. One hook is one way: what goes the other way passes.
func (n *Namespace) Drop(hook Hook, match string) error {
	return n.nft(fmt.Sprintf(`table inet netlab {
	chain %[1]s {
		type filter hook %[1]s priority 0
		%[2]s counter drop
	}
}`, hook, match))
}

// Heal takes back all Drop.
func (n *Namespace) Heal() error {
	return n.nft("table inet netlab {}\ndelete table inet netlab")
}

// NAT makes the namespace a router that hides its inside behind its address on
// the device outside, and forgets a flow that was idle for so long. Like the
// cheap ones it then drops what comes of that flow, and tells nobody.
func (n *Namespace) NAT(outside string, idle time.Duration) error {
	// Before the first packet: what conntrack has not seen, it does not forget.
	if err := n.ForgetAfter(idle); err != nil {
		return err
	}
	for _, s := range []struct{ name, value string }{
		{"netfilter/nf_conntrack_tcp_loose", "0"}, // a flow it did not see begin is invalid
		{"ipv4/ip_forward", "1"},
	} {
		if err := n.sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return n.nft(fmt.Sprintf(`table ip netlab-nat {
	chain forward {
		type filter hook forward priority 0
		ct state invalid counter drop
	}
	chain postrouting {
		type nat hook postrouting priority 100
		oifname %q masquerade
	}
}`, outside))
}

// ForgetAfter sets how long an idle flow is remembered, from its next packet on.
// The system counts in seconds.
func (n *Namespace) ForgetAfter(idle time.Duration) error {
	seconds := strconv.Itoa(max(1, int(idle/time.Second)))
	for _, state := range []string{"established", "unacknowledged", "max_retrans"} {
		if err := n.sysctl("netfilter/nf_conntrack_tcp_timeout_"+state, seconds); err != nil {
			return err
		}
	}
	return nil
}

// Flows returns how many established TCP flows a NAT remembers.
func (n *Namespace) Flows() (flows int, err error) {
	err = n.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		flows = strings.Count(string(table), " ESTABLISHED ")
		return err
	})
	return flows, err
}

func (n *Namespace) nft(ruleset string) error { return n.feed(ruleset, "nft", "-f", "-") }
