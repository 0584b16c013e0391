package credential

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// maxPEMFile bounds files of keys and certificates: a chain of ten has 20 KB.
const maxPEMFile = 1 << 20

// expiresSoon is when a certificate's end is worth a warning: a month to send
// a technician.
const expiresSoon = 30 * 24 * time.Hour

// A CertificateFile is a certificate and its key (PEM), in two files or in one
// of two names, read again when they change, as ACME clients and `touchline sensor ca` change
// them. Where the new ones are broken, or do not fit each other yet, the old
// ones go on to serve, and the log says so once. It starts no goroutine and
// needs no closing; its methods may be called concurrently.
type CertificateFile struct {
	certFile, keyFile string
	logger            *slog.Logger
	begun             time.Time
	looked            atomic.Int64 // ns since begun of the last look at the files
	current           atomic.Pointer[tls.Certificate]

	mu   sync.Mutex // covers a look, and what follows
	seen [2]fs.FileInfo
}

// OpenCertificateFile reads the files. It fails where they do not hold a
// certificate chain and its key.
func OpenCertificateFile(certFile, keyFile string, logger *slog.Logger) (*CertificateFile, error) {
	c := &CertificateFile{certFile: certFile, keyFile: keyFile, logger: logger, begun: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed()
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("open certificate: %w", err)
	}
	return c, nil
}

// GetCertificate is for tls.Config. It never fails. At most once a second it
// looks whether the files changed, and other handshakes do not wait for that.
func (c *CertificateFile) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	now, last := int64(time.Since(c.begun)), c.looked.Load()
	if now-last >= int64(lookInterval) && c.looked.CompareAndSwap(last, now) && c.mu.TryLock() {
		defer c.mu.Unlock()
		if c.changed() {
			if err := c.load(); err != nil {
				c.logger.Error("new certificate is broken: the old one goes on to serve", "certificate", c.certFile, "key", c.keyFile, "error", err)
			}
		}
	}
	return c.current.Load(), nil
}

// NotAfter returns when the certificate that serves now ends.
func (c *CertificateFile) NotAfter() time.Time { return c.current.Load().Leaf.NotAfter }

// changed says whether the files are others than at the last look, and
// remembers them, so that what is wrong with them is said once. Files that
// can't be looked at did not change: they may be on their way. c.mu is held.
func (c *CertificateFile) changed() bool {
	cert, certErr := os.Stat(c.certFile)
	key, keyErr := os.Stat(c.keyFile)
	if certErr != nil || keyErr != nil {
		return false
	}
	last := c.seen
	c.seen = [2]fs.FileInfo{cert, key}
	return last[0] == nil || !sameFile(cert, last[0]) || !sameFile(key, last[1])
}

// load reads the files. c.mu is held.
func (c *CertificateFile) load() error {
	certText, _, certErr := readFile(c.certFile, maxPEMFile)
	keyText, keyInfo, keyErr := readFile(c.keyFile, maxPEMFile)
	if err := errors.Join(certErr, keyErr); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return fmt.Errorf("%s and %s are not a certificate and its key: %w", c.certFile, c.keyFile, err)
	}
	if err := checkPrivate(c.keyFile, keyInfo); err != nil {
		c.logger.Warn("key of a certificate is not private", "error", err)
	}
	if left := time.Until(pair.Leaf.NotAfter); left < expiresSoon {
		c.logger.Warn("certificate ends soon, or has ended: issue a new one", "certificate", c.certFile, "ends", pair.Leaf.NotAfter)
	}
	if before := c.current.Swap(&pair); before != nil {
		c.logger.Info("certificate was replaced", "certificate", c.certFile, "ends", pair.Leaf.NotAfter)
	}
	return nil
}
