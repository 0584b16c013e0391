package clock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"touchline"
)

// TLS returns what a connection to host is encrypted by: nothing older than
// TLS 1.2, and the checks of crypto/tls, by this clock instead of the system's.
// roots are the authorities that are believed; nil is the system's.
//
// While the clock is not set nobody knows if a certificate is valid now. Then
// one is taken that can be: it has not ended by the latest time that is known,
// and at the time from which all of its chain is valid the chain holds. Else a
// gateway that boots in 1970 could not reach the cloud that tells it the time,
// and one that lay in a cupboard for longer than certificates last could not
// either. Who has the key of a certificate that ended since can be taken for
// the cloud by such a gateway, until its clock is set.
func (w *Watch) TLS(host string, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		ServerName: host,
		MinVersion: tls.VersionTLS12,
		// Checked below, on each connection: what crypto/tls does is to be done
		// at a time that depends on the certificates.
		InsecureSkipVerify: true, // #nosec G402 -- VerifyConnection verifies the chain and the name
		VerifyConnection: func(state tls.ConnectionState) error {
			return w.verify(state.PeerCertificates, x509.VerifyOptions{Roots: roots, DNSName: host})
		},
	}
}

// verify does what crypto/tls does where nothing else is configured.
func (w *Watch) verify(chain []*x509.Certificate, opts x509.VerifyOptions) error {
	if len(chain) == 0 {
		return errors.New("tls: the server has no certificate")
	}
	if opts.DNSName == "" {
		panic("BUG: a certificate for no host")
	}
	opts.Intermediates = x509.NewCertPool()
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	opts.CurrentTime = w.verifyAt(chain)
	if _, err := chain[0].Verify(opts); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
	}
	return nil
}

// verifyAt returns the time by which a chain is looked at.
func (w *Watch) verifyAt(chain []*x509.Certificate) time.Time {
	if now, clock := w.Now(); clock.State > touchline.ClockUnset {
		return now
	}
	at := w.Latest()
	for _, c := range chain {
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	return at
}
