package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"touchline/identity"
)

func TestLoadOrMake_KeepsOneKey(t *testing.T) {
	dir := t.TempDir()
	if _, err := identity.Load(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("an empty folder: have %v, want os.ErrNotExist", err)
	}
	// Several at once, as daemon and command may be.
	keys := make([]identity.PublicKey, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := identity.LoadOrMake(dir)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = identity.Public(key)
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || k == (identity.PublicKey{}) {
			t.Fatalf("keys differ: %s and %s", keys[0], k)
		}
	}
	info, err := os.Stat(filepath.Join(dir, identity.FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v %v, want mode 0600", info.Mode(), err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("the folder holds %v %v, want the key alone", names, err)
	}
}

func TestLoad_RefusesAKeyThatOthersCanRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := identity.LoadOrMake(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, identity.FileName), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.LoadOrMake(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("the error is %v, want one with chmod 600", err)
	}
}

// TestLoadOrMake_NeverReplacesWhatItCantRead: a new key would be another
// gateway to the cloud.
func TestLoadOrMake_NeverReplacesWhatItCantRead(t *testing.T) {
	good := t.TempDir()
	if _, err := identity.LoadOrMake(good); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(good, identity.FileName))
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty":       nil,
		"truncated":   whole[:len(whole)/2],
		"not PEM":     []byte("hello\n"),
		"two keys":    append(bytes.Clone(whole), whole...),
		"other type":  bytes.ReplaceAll(whole, []byte("PRIVATE KEY"), []byte("PUBLIC KEY")),
		"another key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"too long":    append(bytes.Clone(whole), bytes.Repeat([]byte("\n"), 8<<10)...),
		"not PKCS #8": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, identity.FileName)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := identity.LoadOrMake(dir)
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("have %v, want an error that names the file and says what to do", err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

func TestParsePublic_OneFormOnly(t *testing.T) {
	key, err := identity.LoadOrMake(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := identity.Public(key)
	text := p.String()
	if back, err := identity.ParsePublic(text); err != nil || back != p {
		t.Fatalf("round trip: %v %v", back, err)
	}
	for _, bad := range []string{"", text[8:], "ed25519:", text + "=", text + "A", text[:len(text)-1], text + "\n", "rsa:" + text[8:], text[:20] + "\n" + text[20:]} {
		if _, err := identity.ParsePublic(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzParsePublic(f *testing.F) {
	f.Add("")
	f.Add(identity.PublicKey{1, 2, 3}.String())
	f.Fuzz(func(t *testing.T, text string) {
		key, err := identity.ParsePublic(text)
		if err == nil && key.String() != text {
			t.Fatalf("%q is read, and written as %q", text, key)
		}
	})
}
