package sensors

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"touchline/credential"
)

func TestPace_GrantsSoMuchASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace{perSecond: 100}
		began := time.Now()
		for range 1000 {
			if wait := p.take(1); wait > 0 {
				time.Sleep(wait)
			}
		}
		if took := time.Since(began); took != 9*time.Second {
			t.Errorf("1,000 at 100 a second took %s, want 9s", took)
		}
		time.Sleep(time.Hour) // what was not used is not saved up
		began = time.Now()
		for range 201 {
			if wait := p.take(1); wait > 0 {
				time.Sleep(wait)
			}
		}
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("201 after a pause took %s, want 2s", took)
		}
		q := pace{perSecond: 10}
		for range 10 {
			if q.over() {
				t.Error("over before the limit")
			}
		}
		for range 2 {
			if !q.over() {
				t.Error("not over at the limit")
			}
		}
		time.Sleep(time.Second)
		if q.over() {
			t.Error("over in the next second")
		}
	})
}

func TestDoor_ForgetsAddressesThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := door{limits: Limits{PerAddress: 2, Handshakes: 5}, peers: map[netip.Addr]*peer{}}
		at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
		for i := range maxPeers {
			if !d.enter(at(i)) {
				t.Fatalf("address %d was refused", i)
			}
			if i > 0 {
				d.leave(at(i))
			}
		}
		time.Sleep(2 * time.Second)
		if !d.enter(at(maxPeers + 1)) {
			t.Error("no room for a new address")
		}
		if d.peers[at(0)] == nil || len(d.peers) > maxPeers {
			t.Errorf("%d addresses are remembered", len(d.peers))
		}
		if !d.enter(at(0)) || d.enter(at(0)) {
			t.Error("the limit of an address was not held")
		}
	})
}

func TestPeerOf_CountsASiteOfIPv6AsOne(t *testing.T) {
	at := func(s string) netip.Addr {
		return peerOf(remote{addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s))})
	}
	if at("[2001:db8:1:2:3::4]:1") != at("[2001:db8:1:2:ffff::1]:9") || at("[2001:db8:1:2::1]:1") == at("[2001:db8:1:3::1]:1") {
		t.Error("/64 is not what counts")
	}
	if at("[::ffff:10.0.0.1]:1") != at("10.0.0.1:2") || at("10.0.0.1:1") == at("10.0.0.2:1") {
		t.Error("IPv4 is not what counts")
	}
}

type remote struct {
	net.Conn
	addr net.Addr
}

func (r remote) RemoteAddr() net.Addr { return r.addr }

// TestMQTT_TLSCertificateIsReplacedWhileItRuns: and old versions of TLS are not
// spoken.
func TestMQTT_TLSCertificateIsReplacedWhileItRuns(t *testing.T) {
	v := newVenue(t, nil)
	dir := t.TempDir()
	ca, err := credential.CreateCA(dir, credential.CAOptions{Name: "test", Domains: credential.LocalDomains, Networks: credential.LocalNetworks})
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(dir, []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, credential.ServerFile)
	certificate, err := credential.OpenCertificateFile(file, file, v.log.logger())
	if err != nil {
		t.Fatal(err)
	}
	m := startMQTT(t, v.in, func(o *MQTTOptions) {
		o.Address, o.TLSAddress, o.TLS = "", "127.0.0.1:0", credential.ServerTLS(certificate)
	}, v.log.logger())
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(dir, credential.CACertFile))
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	serial := func() string {
		conn, err := tls.Dial("tcp", m.TLSAddr().String(), &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := dialRawOn(conn)
		c.send(t, loginPacket{client: "x", user: "belt-17", password: v.key["belt-17"]}.bytes(5))
		if p := c.expect(t, kConnack); p.body[1] != 0 {
			t.Fatalf("CONNACK says %#x", p.body[1])
		}
		c.publish(t, 1, 1, "sensors/belt-17/hr", "1")
		c.expectAck(t, kPuback, 1)
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	if err := ca.Issue(dir, []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new certificate", func() bool {
		conn, err := tls.Dial("tcp", m.TLSAddr().String(), &tls.Config{RootCAs: roots})
		if err != nil {
			return false
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String() != before
	})
	if conn, err := tls.Dial("tcp", m.TLSAddr().String(), &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	plain := dialRaw(t, m.TLSAddr(), 5)
	_, _ = plain.Write(loginPacket{client: "x", user: "belt-17", password: v.key["belt-17"]}.bytes(5))
	if p, err := plain.read(); err == nil && p.kind == kConnack {
		t.Error("MQTT without TLS was answered")
	}
}
