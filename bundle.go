package touchline

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"
)

// A Bundle is what a gateway is installed with at a site, in one file:
// `touchline-cloud gateway claim --bundle` writes it, and `touchline install
// --bundle` takes it. Who has the file can be that gateway, once, until the
// claim ends.
type Bundle struct {
	Version int       `json:"touchline_bundle"` // BundleVersion
	Cloud   []string  `json:"cloud"`            // as uplink.urls
	Gateway string    `json:"gateway,omitempty"`
	Claim   string    `json:"claim"`
	Expires time.Time `json:"expires"`
	CA      string    `json:"ca,omitempty"`     // own roots (PEM)
	Config  string    `json:"config,omitempty"` // settings beside [gateway] and uplink.urls, TOML, that begin with a table
}

// BundleVersion is the one that this version of the programs writes and reads.
const BundleVersion = 1

// maxBundleBytes holds roots and settings many times over.
const maxBundleBytes = 1 << 20

// ReadBundle reads a file that Write wrote.
func ReadBundle(file string) (b Bundle, err error) {
	fail := func(err error) (Bundle, error) { return Bundle{}, fmt.Errorf("read bundle %s: %w", file, err) }
	f, err := os.Open(file)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBundleBytes))
	if err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(text, &b); err != nil || b.Version == 0 {
		return fail(errors.New("it is none: `touchline-cloud gateway claim --bundle FILE` makes one"))
	}
	if b.Version != BundleVersion {
		return fail(fmt.Errorf("it has form %d, and this version of touchline reads form %d: install the version that made it", b.Version, BundleVersion))
	}
	if err := b.Check(); err != nil {
		return fail(err)
	}
	return b, nil
}

// Check says what is wrong with it.
func (b *Bundle) Check() error {
	if len(b.Cloud) == 0 {
		return errors.New("it names no cloud")
	}
	for _, s := range b.Cloud {
		if u, err := url.Parse(s); err != nil || u.Host == "" || u.User != nil || u.Scheme != "ws" && u.Scheme != "wss" {
			return fmt.Errorf("%q is no address of a cloud: want such as \"wss://cloud.example.org\"", s)
		}
	}
	if b.Claim == "" {
		return errors.New("it has no claim code")
	}
	if err := b.CheckCA(); err != nil {
		return err
	}
	if b.Gateway != "" {
		return CheckGateway(b.Gateway)
	}
	return nil
}

// CheckCA says whether own roots are any.
func (b *Bundle) CheckCA() error {
	if b.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(b.CA)) {
		return errors.New("its roots are none: want certificates in PEM (-----BEGIN CERTIFICATE-----)")
	}
	return nil
}

// Write writes it to a file of its own, which only its owner reads: it has a
// secret in it.
func (b Bundle) Write(file string) error {
	b.Version = BundleVersion
	if err := b.Check(); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}
