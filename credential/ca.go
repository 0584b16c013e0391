package credential

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"touchline/internal/folder"
)

// Files of a CA in its folder, and of what it issues. Sensors are given
// CACertFile; CAKeyFile may be kept elsewhere than on the gateway, which
// needs it to issue only.
const (
	CACertFile = "sensor-ca.crt"  // 0644
	CAKeyFile  = "sensor-ca.key"  // 0600
	ServerFile = "sensor-tls.pem" // 0600: key and certificate in one, so that no crash can part them
)

const (
	// CALife outlives the sensors that are given its certificate.
	CALife = 10 * 365 * 24 * time.Hour

	// ServerLife is the longest that every client takes from a CA of one's own:
	// Apple's systems refuse more than 825 days, all others more. Public CAs have
	// less, since they renew by themselves; here a person may have to come.
	ServerLife = 824 * 24 * time.Hour

	// backdated allows for sensors whose clocks are late. It is part of the life.
	backdated = 48 * time.Hour

	maxCANames = 100
)

// earliest is before any clock that was set: a certificate that begins then
// was issued by one that was not, and would be over when it is.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var errClock = errors.New("the clock was not set: set it first, or the certificate is over before it is used")

// LocalDomains and LocalNetworks are what a CA may vouch for unless told
// otherwise: names and addresses that mean something in a local network only
// (RFC 6762, RFC 8375; RFC 1918, RFC 4193, link-local, loopback). Whoever
// steals the CA's key can't use it for the names of the internet.
var (
	LocalDomains  = []string{"local", "lan", "internal", "home.arpa", "localhost"}
	LocalNetworks = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::1/128"),
	}
)

// CAOptions are what a CA is made for.
type CAOptions struct {
	Name     string         // of the CA, as people see it: "touchline sensors, north stand"
	Domains  []string       // it may vouch for these names and what ends in them: LocalDomains and, say, the gateway's
	Networks []netip.Prefix // and for these addresses
}

// A CA issues certificates for the gateways of a local network, so that
// sensors can check whom they talk to: ECDSA P-256 and SHA-256, which every
// small TLS library has.
type CA struct {
	cert *x509.Certificate
	der  []byte
	key  *ecdsa.PrivateKey
}

// CreateCA makes a CA in folder. It never replaces one: where there is a file
// already, the error wraps fs.ErrExist.
func CreateCA(dir string, o CAOptions) (*CA, error) {
	fail := func(err error) (*CA, error) { return nil, fmt.Errorf("make CA: %w", err) }
	now := time.Now()
	if now.Before(earliest) {
		return fail(errClock)
	}
	template, err := caTemplate(o, now)
	if err != nil {
		return fail(err)
	}
	// The certificate comes last: without it, a CA cut short was never one.
	for _, name := range []string{CACertFile, CAKeyFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return fail(errors.Join(err, fmt.Errorf("%s: %w; move both files of the old CA away first, and give the new certificate to all sensors", filepath.Join(dir, name), fs.ErrExist)))
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fail(err)
	}
	keyPEM, err := privatePEM(key)
	if err != nil {
		return fail(err)
	}
	if err := folder.Create(filepath.Join(dir, CAKeyFile), keyPEM, 0o600); err != nil {
		return fail(err)
	}
	if err := folder.Create(filepath.Join(dir, CACertFile), certPEM(der), 0o644); err != nil {
		return fail(errors.Join(err, os.Remove(filepath.Join(dir, CAKeyFile))))
	}
	return OpenCA(dir)
}

func caTemplate(o CAOptions, now time.Time) (*x509.Certificate, error) {
	if o.Name == "" || len(o.Name) > 64 { // ub-common-name of RFC 5280
		return nil, fmt.Errorf("its name has %d bytes: want 1 to 64", len(o.Name))
	}
	if len(o.Domains) == 0 || len(o.Networks) == 0 || len(o.Domains)+len(o.Networks) > maxCANames {
		return nil, fmt.Errorf("want at least one domain and one network, and at most %d", maxCANames)
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: o.Name},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(CALife - backdated),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		// RFC 5280 wants them critical. Then small libraries that do not know
		// them (Mbed TLS) refuse the CA; all that know them apply them as they are.
		PermittedDNSDomainsCritical: false,
	}
	for _, d := range o.Domains {
		if err := checkHost(strings.TrimPrefix(d, ".")); err != nil {
			return nil, err
		}
		template.PermittedDNSDomains = append(template.PermittedDNSDomains, strings.ToLower(strings.TrimPrefix(d, ".")))
	}
	for _, n := range o.Networks {
		if !n.IsValid() || n != n.Masked() {
			return nil, fmt.Errorf("network %s: want such as 192.168.0.0/16", n)
		}
		template.PermittedIPRanges = append(template.PermittedIPRanges, &net.IPNet{
			IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen()),
		})
	}
	return template, nil
}

// OpenCA opens the CA in folder.
func OpenCA(dir string) (*CA, error) {
	fail := func(err error) (*CA, error) { return nil, fmt.Errorf("open CA: %w", err) }
	certFile, keyFile := filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile)
	certText, _, err := readFile(certFile, maxPEMFile)
	if err != nil {
		return fail(err)
	}
	keyText, info, err := readFile(keyFile, maxPEMFile)
	if err != nil {
		return fail(err)
	}
	if err := checkPrivate(keyFile, info); err != nil {
		return fail(err)
	}
	block, _ := pem.Decode(certText)
	if block == nil || block.Type != "CERTIFICATE" {
		return fail(fmt.Errorf("%s holds no certificate", certFile))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", certFile, err))
	}
	parsed, err := parsePrivatePEM(keyText)
	if err != nil {
		return fail(fmt.Errorf("%s %w", keyFile, err))
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return fail(fmt.Errorf("%s and %s are not the certificate and the key of one CA", certFile, keyFile))
	}
	return &CA{cert, block.Bytes, key}, nil
}

// Certificate returns the CA's certificate in PEM, for sensors.
func (ca *CA) Certificate() []byte { return certPEM(ca.der) }

// NotAfter returns when the CA's certificate ends.
func (ca *CA) NotAfter() time.Time { return ca.cert.NotAfter }

// Issue makes a new key and a certificate for hosts, names or addresses by
// which sensors reach a gateway, and writes both to ServerFile in dir, in
// place of older ones. A CertificateFile that has it open takes them up.
func (ca *CA) Issue(dir string, hosts []string) error {
	fail := func(err error) error { return fmt.Errorf("issue certificate: %w", err) }
	now := time.Now()
	if now.Before(earliest) || now.Before(ca.cert.NotBefore) {
		return fail(errClock)
	}
	if now.After(ca.cert.NotAfter) {
		return fail(fmt.Errorf("the CA ended on %s: make a new one, and give its certificate to all sensors", ca.cert.NotAfter.Format(time.DateOnly)))
	}
	template, err := serverTemplate(hosts, now)
	if err != nil {
		return fail(err)
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return fail(err)
	}
	if err := ca.verify(der, hosts, now); err != nil {
		return fail(err)
	}
	keyPEM, err := privatePEM(key)
	if err != nil {
		return fail(err)
	}
	text := slices.Concat(keyPEM, certPEM(der)) // sensors have the CA's
	if err := folder.Replace(filepath.Join(dir, ServerFile), text, 0o600); err != nil {
		return fail(err)
	}
	return nil
}

func serverTemplate(hosts []string, now time.Time) (*x509.Certificate, error) {
	if len(hosts) == 0 || len(hosts) > maxCANames {
		return nil, fmt.Errorf("%d names and addresses: want 1 to %d, those by which sensors reach the gateway", len(hosts), maxCANames)
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: hosts[0][:min(len(hosts[0]), 64)]},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(ServerLife - backdated),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
			continue
		}
		if err := checkHost(h); err != nil {
			return nil, err
		}
		t.DNSNames = append(t.DNSNames, strings.ToLower(h))
	}
	return t, nil
}

// verify checks the certificate as a sensor would, the CA's bounds included.
func (ca *CA) verify(der []byte, hosts []string, now time.Time) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for _, h := range hosts {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: h, CurrentTime: now}); err != nil {
			return fmt.Errorf("%s: %w; this CA may vouch for names in %s, and for addresses in %s", h, err,
				strings.Join(ca.cert.PermittedDNSDomains, ", "), networks(ca.cert.PermittedIPRanges))
		}
	}
	return nil
}

func networks(list []*net.IPNet) string {
	names := make([]string, len(list))
	for i, n := range list {
		names[i] = n.String()
	}
	return strings.Join(names, ", ")
}

// checkHost says whether s is a host name (RFC 1123) without wildcards.
func checkHost(s string) error {
	bad := func(label string) bool {
		letters := strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-")
		return label == "" || len(label) > 63 || letters != "" || label[0] == '-' || label[len(label)-1] == '-'
	}
	if len(s) > maxAudience || slices.ContainsFunc(strings.Split(s, "."), bad) {
		return fmt.Errorf("%.80q is no host name", s)
	}
	return nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// ServerTLS returns settings for a listener: TLS 1.2 or newer, with the
// certificate that source has at each handshake.
func ServerTLS(source *CertificateFile) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: source.GetCertificate}
}
