package credential

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newCA(t testing.TB) (*CA, string) {
	t.Helper()
	folder := t.TempDir()
	ca, err := CreateCA(folder, CAOptions{Name: "touchline sensors, test", Domains: append(LocalDomains, "box-7"), Networks: LocalNetworks})
	if err != nil {
		t.Fatal(err)
	}
	return ca, folder
}

var gatewayHosts = []string{"gateway.local", "Gateway.LAN", "box-7", "192.168.0.10", "fd00::1", "127.0.0.1", "localhost"}

// trust is a sensor that has the CA's certificate.
func trust(t testing.TB, ca *CA) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.Certificate()) {
		t.Fatal("no certificate")
	}
	return pool
}

// handshake connects to host, and returns the certificate that was shown.
func handshake(t testing.TB, source *CertificateFile, client *tls.Config) (*x509.Certificate, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		server := tls.Server(conn, ServerTLS(source))
		_ = server.Handshake()
		_ = server.Close()
	}()
	defer func() { <-done }()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

func TestCA_SensorsTrustWhatItIssued(t *testing.T) {
	ca, folder := newCA(t)
	if err := ca.Issue(folder, gatewayHosts); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, ServerFile)
	source, err := OpenCertificateFile(file, file, quiet())
	if err != nil {
		t.Fatal(err)
	}
	pool := trust(t, ca)
	for _, host := range gatewayHosts {
		if _, err := handshake(t, source, &tls.Config{RootCAs: pool, ServerName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, host := range []string{"other.local", "192.168.0.11", "gateway.local.evil.example"} {
		if _, err := handshake(t, source, &tls.Config{RootCAs: pool, ServerName: host}); err == nil {
			t.Errorf("%s is trusted", host)
		}
	}
	other, _ := newCA(t)
	if _, err := handshake(t, source, &tls.Config{RootCAs: trust(t, other), ServerName: "gateway.local"}); err == nil {
		t.Error("trusted by a sensor of another CA")
	}
	if _, err := handshake(t, source, &tls.Config{RootCAs: pool, ServerName: "gateway.local", MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	for name, want := range map[string]fs.FileMode{CACertFile: 0o644, CAKeyFile: 0o600, ServerFile: 0o600} {
		if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, info.Mode(), err, want)
		}
	}
	cert, err := handshake(t, source, &tls.Config{RootCAs: pool, ServerName: "gateway.local"})
	if err != nil {
		t.Fatal(err)
	}
	if life := cert.NotAfter.Sub(cert.NotBefore); life > 825*24*time.Hour || !source.NotAfter().Equal(cert.NotAfter) {
		t.Error("life", life)
	}
	again, err := OpenCA(folder)
	if err != nil || !again.NotAfter().Equal(ca.NotAfter()) || time.Until(ca.NotAfter()) < 9*365*24*time.Hour {
		t.Error(again, err)
	}
}

// openssl is what many sensors and tools check with: a second opinion on what
// Go's own code both wrote and read.
func TestCA_OpenSSLAgrees(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: its opinion of the certificates is not asked")
	}
	ca, folder := newCA(t)
	if err := ca.Issue(folder, gatewayHosts); err != nil {
		t.Fatal(err)
	}
	verify := func(args ...string) (string, error) {
		args = append([]string{"verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", filepath.Join(folder, CACertFile)}, args...)
		out, err := exec.Command(openssl, append(args, filepath.Join(folder, ServerFile))...).CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{{"-verify_hostname", "gateway.local"}, {"-verify_ip", "192.168.0.10"}, {"-verify_hostname", "box-7"}} {
		if out, err := verify(args...); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	if out, err := verify("-verify_hostname", "gateway.example"); err == nil {
		t.Errorf("a name that is not in it: %s", out)
	}
	out, err := exec.Command(openssl, "x509", "-in", filepath.Join(folder, CACertFile), "-noout", "-text").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CA:TRUE, pathlen:0", "Name Constraints", "DNS:home.arpa", "IP:192.168.0.0/255.255.0.0", "ecdsa-with-SHA256", "prime256v1"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestCA_VouchesForLocalNamesOnly(t *testing.T) {
	ca, folder := newCA(t)
	for _, hosts := range [][]string{
		{"www.example.org"}, {"gateway.local", "example.org"}, {"8.8.8.8"}, {"2001:db8::1"}, {"notlocal"}, {"box-8"},
		nil, {""}, {"*.local"}, {"a b.local"}, {"-a.local"}, {"a..local"}, {"gateway.local:8883"}, make([]string, maxCANames+1),
	} {
		if err := ca.Issue(folder, hosts); err == nil {
			t.Errorf("issued for %q", hosts)
		}
	}
	if err := ca.Issue(folder, []string{"www.example.org"}); err == nil || !strings.Contains(err.Error(), "may vouch for names in local, ") {
		t.Error("the error does not say what is possible:", err)
	}
	if _, err := os.Stat(filepath.Join(folder, ServerFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a certificate was written all the same:", err)
	}
}

func TestCreateCA_NeverReplacesOne(t *testing.T) {
	ca, folder := newCA(t)
	o := CAOptions{Name: "another", Domains: LocalDomains, Networks: LocalNetworks}
	for _, gone := range []string{"", CACertFile, CAKeyFile} {
		work := t.TempDir()
		if err := os.CopyFS(work, os.DirFS(folder)); err != nil {
			t.Fatal(err)
		}
		if gone != "" {
			if err := os.Remove(filepath.Join(work, gone)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := CreateCA(work, o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("without %q: %v", gone, err)
		}
	}
	if again, err := OpenCA(folder); err != nil || !bytes.Equal(again.Certificate(), ca.Certificate()) {
		t.Error("the CA changed:", err)
	}
	for _, bad := range []CAOptions{{}, {Name: "x"}, {Name: "x", Domains: []string{"a b"}, Networks: LocalNetworks},
		{Name: "x", Domains: LocalDomains, Networks: []netip.Prefix{{}}}, {Name: strings.Repeat("x", 65), Domains: LocalDomains, Networks: LocalNetworks},
		{Name: "x", Domains: LocalDomains, Networks: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")}}} {
		folder := t.TempDir()
		if _, err := CreateCA(folder, bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
		if left, _ := os.ReadDir(folder); len(left) != 0 {
			t.Errorf("%+v left %v", bad, left)
		}
	}
}

func TestOpenCA_SaysWhatIsWrong(t *testing.T) {
	_, folder := newCA(t)
	_, other := newCA(t)
	for name, test := range map[string]struct {
		breakIt func(folder string) error
		want    string
	}{
		"key of another": {func(f string) error {
			text, _ := os.ReadFile(filepath.Join(other, CAKeyFile))
			return os.WriteFile(filepath.Join(f, CAKeyFile), text, 0o600)
		}, "of one CA"},
		"no key":            {func(f string) error { return os.Remove(filepath.Join(f, CAKeyFile)) }, "no such file"},
		"empty certificate": {func(f string) error { return os.Truncate(filepath.Join(f, CACertFile), 0) }, "no certificate"},
		"damaged key":       {func(f string) error { return os.Truncate(filepath.Join(f, CAKeyFile), 40) }, "private key"},
		"open key":          {func(f string) error { return os.Chmod(filepath.Join(f, CAKeyFile), 0o644) }, "chmod 600"},
	} {
		work := t.TempDir()
		for _, file := range []string{CACertFile, CAKeyFile} {
			write(t, filepath.Join(work, file), read(t, filepath.Join(folder, file)))
		}
		if err := test.breakIt(work); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCA(work); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestCertificateFile_ReloadsAndKeepsTheOldWhereTheNewIsBroken(t *testing.T) {
	ca, folder := newCA(t)
	file := filepath.Join(folder, ServerFile)
	issue := func() {
		t.Helper()
		if err := ca.Issue(folder, gatewayHosts); err != nil {
			t.Fatal(err)
		}
	}
	issue()
	var log bytes.Buffer
	source, err := OpenCertificateFile(file, file, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	shown := func() string {
		t.Helper()
		cert, err := source.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf.SerialNumber.String()
	}
	look := func() string { // as a second later
		source.begun = source.begun.Add(-lookInterval)
		return shown()
	}
	first := shown()
	issue()
	if got := shown(); got != first {
		t.Error("looked again within a second")
	}
	second := look()
	if second == first || !strings.Contains(log.String(), "certificate was replaced") {
		t.Errorf("not reloaded; log:\n%s", log.String())
	}
	good := read(t, file)
	other, otherFolder := newCA(t)
	if err := other.Issue(otherFolder, gatewayHosts); err != nil {
		t.Fatal(err)
	}
	key, _ := pem.Decode([]byte(read(t, filepath.Join(otherFolder, ServerFile))))
	_, certs := pem.Decode([]byte(good))
	for name, breakIt := range map[string]func() error{
		"empty":            func() error { return os.WriteFile(file, nil, 0o600) },
		"cut":              func() error { return os.WriteFile(file, []byte(good[:len(good)-50]), 0o600) },
		"only the key":     func() error { return os.WriteFile(file, []byte(good[:len(good)-len(certs)]), 0o600) },
		"key of another":   func() error { return os.WriteFile(file, append(pem.EncodeToMemory(key), certs...), 0o600) },
		"no certificate":   func() error { return os.WriteFile(file, []byte("hello"), 0o600) },
		"larger than sane": func() error { return os.WriteFile(file, make([]byte, maxPEMFile+1), 0o600) },
	} {
		log.Reset()
		if err := breakIt(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if look() != second {
				t.Errorf("%s: the old one does not serve", name)
			}
		}
		if n := strings.Count(log.String(), "new certificate is broken"); n != 1 {
			t.Errorf("%s: said %d times:\n%s", name, n, log.String())
		}
		if strings.Contains(log.String(), "PRIVATE KEY") {
			t.Errorf("%s: the log has the key", name)
		}
		write(t, file, good)
		if look() != second {
			t.Errorf("%s: the mended one does not serve", name)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if look() != second {
		t.Error("gone: the old one does not serve")
	}
	issue()
	if third := look(); third == second {
		t.Error("the one after it does not serve")
	}
	if _, err := OpenCertificateFile(file, filepath.Join(folder, CAKeyFile), quiet()); err == nil {
		t.Error("a key that does not fit was opened")
	}
}
