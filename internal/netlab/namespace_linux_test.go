package netlab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// newNamespaces makes n of them, or skips with the reason.
func newNamespaces(t *testing.T, n int) []*Namespace {
	t.Helper()
	list := make([]*Namespace, n)
	for i := range list {
		ns, err := NewNamespace()
		if errors.Is(err, ErrRefused) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		list[i] = ns
	}
	return list
}

func end1(n *Namespace, device, address string) End {
	return End{In: n, Device: device, Address: netip.MustParsePrefix(address)}
}

// echoIn serves an echo inside, at address.
func echoIn(t *testing.T, n *Namespace, address string) {
	t.Helper()
	l, err := n.Listen(address)
	check(t, err)
	serveEcho(t, l)
}

func dialIn(t *testing.T, n *Namespace, address string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := n.DialContext(ctx, "tcp", address)
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

const (
	left, right = "198.18.0.1/30", "198.18.0.2/30"
	service     = "198.18.0.2:8090"
)

func TestNamespace_IsANetworkOfItsOwn(t *testing.T) {
	n := newNamespaces(t, 1)[0]
	before, err := os.Readlink(threadNet)
	check(t, err)
	var inside string
	check(t, n.Do(func() (err error) {
		inside, err = os.Readlink(threadNet)
		return err
	}))
	if inside == before {
		t.Error("Do runs outside")
	}
	for range 100 { // any thread that Do used is back where it was
		check(t, n.Do(func() error { return nil }))
		if now, err := os.Readlink(threadNet); err != nil || now != before {
			t.Fatalf("a goroutine was left in the network %s, %v", now, err)
		}
	}
	echoIn(t, n, "127.0.0.1:7")
	if _, err := net.Dial("tcp", "127.0.0.1:7"); err == nil {
		t.Error("its loopback is ours")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	echoIn(t, n, l.Addr().String())
	r, err := n.Expose(port)
	check(t, err)
	defer r.Close()
	mustEcho(t, mustDial(t, r.Addr()), "exposed")
}

func TestNamespace_GoesAwayWithItsLastUser(t *testing.T) {
	list := newNamespaces(t, 2)
	check(t, Veth(end1(list[0], "left", left), end1(list[1], "right", right)))
	check(t, list[1].Close())
	// With it goes its end of the cable, and so the other end.
	for deadline := time.Now().Add(patience); list[0].Run("ip", "link", "show", "left") == nil; {
		if time.Now().After(deadline) {
			t.Fatal("a namespace that nobody uses is still there")
		}
	}
	check(t, list[1].Close())
}

func TestDrop_IsOneWayAndSilent(t *testing.T) {
	list := newNamespaces(t, 2)
	check(t, Veth(end1(list[0], "left", left), end1(list[1], "right", right)))
	echoIn(t, list[1], service)
	conn := dialIn(t, list[0], service)
	mustEcho(t, conn, "before")
	check(t, list[1].Drop(Input, "tcp dport 8090"))
	expectSilence(t, conn, "during")
	check(t, list[1].Heal())
	mustEcho2(t, conn, "during", "after") // TCP repeats what was dropped
	check(t, list[1].Heal())
}

func TestLimit_HoldsTheRate(t *testing.T) {
	list := newNamespaces(t, 2)
	a, b := end1(list[0], "left", left), end1(list[1], "right", right)
	check(t, Veth(a, b))
	check(t, a.Limit(1_000_000, 500*time.Millisecond))
	echoIn(t, list[1], service)
	begin := time.Now()
	mustEcho(t, dialIn(t, list[0], service), strings.Repeat("x", 50_000))
	// 400,000 bits at 1 Mbit/s are 400 ms, less what the bucket lets through.
	if took := time.Since(begin); took < 350*time.Millisecond {
		t.Errorf("50 kB at 1 Mbit/s took %v", took)
	}
}

func TestNAT_ForgetsIdleFlows(t *testing.T) {
	list := newNamespaces(t, 3)
	inside, router, outside := list[0], list[1], list[2]
	check(t, Veth(end1(inside, "inside", "198.18.1.2/30"), end1(router, "lan", "198.18.1.1/30")))
	check(t, Veth(end1(router, "wan", left), end1(outside, "outside", right)))
	check(t, inside.Route(netip.MustParsePrefix("198.18.0.0/30"), netip.MustParseAddr("198.18.1.1")))
	check(t, router.NAT("wan", time.Second))
	echoIn(t, outside, service)
	conn := dialIn(t, inside, service)
	mustEcho(t, conn, "before")
	if n, err := router.Flows(); n != 1 || err != nil {
		t.Errorf("the NAT knows %d flows, %v", n, err)
	}
	deadline := time.Now().Add(patience)
	for n := 1; n > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the NAT never forgot")
		}
		var err error
		n, err = router.Flows()
		check(t, err)
	}
	expectSilence(t, conn, "nobody knows me any more")
	conn = dialIn(t, inside, service)
	mustEcho(t, conn, "a new flow is known")
	check(t, router.Forget())
	expectSilence(t, conn, "until the router starts anew")
	mustEcho(t, dialIn(t, inside, service), "and so is the next")
}

func TestTunnel_DelaysLosesAndCuts(t *testing.T) {
	list := newNamespaces(t, 2)
	tunnel, err := NewTunnel(end1(list[0], "left", left), end1(list[1], "right", right), 1,
		Conditions{Delay: 50 * time.Millisecond, Jitter: 5 * time.Millisecond})
	check(t, err)
	defer tunnel.Close()
	echoIn(t, list[1], service)
	conn := dialIn(t, list[0], service)
	begin := time.Now()
	mustEcho(t, conn, "there and back")
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("a round trip over 50 ms took %v", took)
	}

	tunnel.Set(Conditions{Loss: 0.1, Reorder: 0.1, Delay: time.Millisecond})
	text := strings.Repeat("TCP repairs loss and order. ", 10_000)
	go func() { _, _ = io.WriteString(conn, text) }()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("280 kB over a link that loses: %v", err)
	}
	forth, back := tunnel.Stats()
	if forth.Lost == 0 || back.Lost == 0 || forth.Overtook == 0 {
		t.Errorf("forth %+v, back %+v", forth, back)
	}

	tunnel.Set(Conditions{})
	tunnel.Cut(true, false)
	expectSilence(t, conn, "cut")
	tunnel.Cut(false, false)
	mustEcho2(t, conn, "cut", "healed")
}

func TestWay_DecidesBySeed(t *testing.T) {
	decide := func(seed uint64) (decisions []bool) {
		w := newWay(nil, nil, seed, 0)
		w.conditions = Conditions{Loss: 0.5}
		for range 100 {
			decisions = append(decisions, w.accept([]byte("p"), time.Unix(0, 0)))
		}
		return decisions
	}
	same := func(a, b []bool) bool {
		for i := range a {
			if a[i] != b[i] {
				return false
			}
		}
		return true
	}
	if !same(decide(1), decide(1)) || same(decide(1), decide(2)) {
		t.Error("a seed does not decide, or decides nothing")
	}
}

func TestWay_DropsWhatItsQueueCannotHold(t *testing.T) {
	w := newWay(nil, nil, 1, 0)
	w.conditions = Conditions{BitsPerSecond: 8000, QueueBytes: 3000}
	now := time.Unix(0, 0)
	queued := 0
	for range 10 {
		if w.accept(make([]byte, 1000), now) {
			queued++
		}
	}
	// One second each: the fourth waits 3 s, which is what the queue holds.
	if queued != 4 || w.stats.Overflowed != 6 {
		t.Errorf("%d were queued, %+v", queued, w.stats)
	}
	if data, wait := w.next(now); data != nil || wait != time.Second {
		t.Errorf("the first is due in %v", wait)
	}
	if data, _ := w.next(now.Add(time.Second)); len(data) != 1000 {
		t.Error("the first was not delivered after a second")
	}
}
