package netlab

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	// The system counts in seconds. All is set before the first packet: a
	// flow keeps the timeout that its last packet gave it.
	seconds := strconv.Itoa(max(1, int(idle/time.Second)))
	for _, s := range []struct{ name, value string }{
		{"netfilter/nf_conntrack_tcp_timeout_established", seconds},
		{"netfilter/nf_conntrack_tcp_timeout_unacknowledged", seconds},
		{"netfilter/nf_conntrack_tcp_timeout_max_retrans", seconds},
		{"netfilter/nf_conntrack_tcp_loose", "0"}, // a flow it did not see begin is invalid
		{"ipv4/ip_forward", "1"},
	} {
		if err := n.sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return n.nft(fmt.Sprintf(`table ip netlab-nat {
	chain input {
		type filter hook input priority 0
		ct state invalid counter drop
	}
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

// Forget makes a NAT forget all flows, as a router does that starts anew.
func (n *Namespace) Forget() error {
	// From linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: a deletion
	// that names no flow means all.
	const (
		subsystemCT, deleteCT = 1, 2
		flags                 = unix.NLM_F_REQUEST | unix.NLM_F_ACK
		size                  = unix.NLMSG_HDRLEN + 4
	)
	request := binary.NativeEndian.AppendUint32(nil, size)
	request = binary.NativeEndian.AppendUint16(request, subsystemCT<<8|deleteCT)
	request = binary.NativeEndian.AppendUint16(request, flags)
	request = append(request, make([]byte, 8)...)      // sequence and port
	request = append(request, unix.AF_UNSPEC, 0, 0, 0) // nfgenmsg: every family, version 0, resource 0
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("%w: netfilter: %w", ErrRefused, err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("forget flows: %w", err)
		}
		answer := make([]byte, 4096)
		got, _, err := unix.Recvfrom(fd, answer, 0)
		if err != nil || got < unix.NLMSG_HDRLEN+4 {
			return fmt.Errorf("forget flows: answer of %d bytes: %w", got, err)
		}
		if code := -int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
			return fmt.Errorf("%w: forget flows: %w", ErrRefused, unix.Errno(code))
		}
		return nil
	})
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
