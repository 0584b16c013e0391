package clock

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"touchline"
)

// A server's certificate, and the authority that vouches for it. Both are
// valid in the same span.
type vouched struct {
	roots *x509.CertPool
	cert  tls.Certificate
}

func vouch(t *testing.T, from, to time.Time, names ...string) vouched {
	t.Helper()
	sign := func(serial int64, ca bool, by *x509.Certificate, with *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: to,
			BasicConstraintsValid: true, IsCA: ca, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		if !ca {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			for _, name := range names {
				if ip := net.ParseIP(name); ip != nil {
					c.IPAddresses = append(c.IPAddresses, ip)
				} else {
					c.DNSNames = append(c.DNSNames, name)
				}
			}
		}
		if by == nil {
			by, with = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, with)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	ca, caKey := sign(1, true, nil, nil)
	leaf, key := sign(2, false, ca, caKey)
	v := vouched{roots: x509.NewCertPool(), cert: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
	v.roots.AddCert(ca)
	return v
}

// connect shakes hands with a server that has the certificate. It is called in
// a bubble: the deadline frees a refusal and an answer that wait for one another.
func connect(config *tls.Config, cert tls.Certificate) error {
	ours, theirs := net.Pipe()
	defer ours.Close()
	for _, end := range []net.Conn{ours, theirs} {
		if err := end.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		_ = tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake()
	}()
	err := tls.Client(ours, config).Handshake()
	ours.Close()
	<-done
	return err
}

func TestTLS_AGatewayWithoutAClockReachesTheCloud(t *testing.T) {
	const day = 24 * time.Hour
	released := time.Unix(0, touchline.Released)
	for name, c := range map[string]struct {
		shows    time.Time // on the gateway's clock
		from, to time.Time // of the certificate
		host     string
		others   bool // another authority signed it
		want     bool
	}{
		"the clock is right":                        {shows: match, from: match.Add(-day), to: match.Add(day), want: true},
		"the clock is right, the certificate ended": {shows: match, from: match.Add(-3 * day), to: match.Add(-day)},
		"the clock is right, it is valid tomorrow":  {shows: match, from: match.Add(day), to: match.Add(3 * day)},
		"1970":                 {shows: time.Unix(0, 0), from: match.Add(-day), to: match.Add(day), want: true},
		"1970, by its address": {shows: time.Unix(0, 0), from: match.Add(-day), to: match.Add(day), host: "192.0.2.1", want: true},
		"1970, and it ended before this was released": {shows: time.Unix(0, 0), from: released.Add(-3 * day), to: released.Add(-day)},
		"1970, and it is of another host":             {shows: time.Unix(0, 0), from: match.Add(-day), to: match.Add(day), host: "cloud.example.org"},
		"1970, and it is of another address":          {shows: time.Unix(0, 0), from: match.Add(-day), to: match.Add(day), host: "192.0.2.2"},
		"1970, and nobody vouches for it":             {shows: time.Unix(0, 0), from: match.Add(-day), to: match.Add(day), others: true},
	} {
		t.Run(name, func(t *testing.T) {
			v := vouch(t, c.from, c.to, "cloud.example.com", "192.0.2.1")
			roots, host := v.roots, c.host
			if c.others {
				roots = vouch(t, c.from, c.to, "cloud.example.com").roots
			}
			if host == "" {
				host = "cloud.example.com"
			}
			synctest.Test(t, func(t *testing.T) {
				w := switchOn(t, c.shows).open(t.TempDir())
				err := connect(w.TLS(host, roots), v.cert)
				if (err == nil) != c.want {
					t.Errorf("the handshake says %v", err)
				}
				var refused *tls.CertificateVerificationError
				if err != nil && !errors.As(err, &refused) {
					t.Errorf("refused by %v, and not for its certificate", err)
				}
			})
		})
	}
}

func TestTLS_IsStrictOnceTheClockIsSet(t *testing.T) {
	v := vouch(t, match.Add(-72*time.Hour), match.Add(-24*time.Hour), "cloud.example.com")
	synctest.Test(t, func(t *testing.T) {
		w := switchOn(t, time.Unix(0, 0)).open(t.TempDir())
		config := w.TLS("cloud.example.com", v.roots)
		if err := connect(config, v.cert); err != nil {
			t.Errorf("before anybody knows the time: %v", err)
		}
		w.Heard(match, time.Millisecond)
		if err := connect(config, v.cert); err == nil {
			t.Error("a certificate that has ended is taken by a clock that is set")
		}
	})
}
