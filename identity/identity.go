// Package identity is a gateway's key pair (Ed25519, RFC 8032): what proves
// that something was made by this gateway and no other. The private half stays
// in the gateway's data folder; the public half is what an operator hands to
// the cloud and to other gateways. It holds no state and starts nothing.
package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"touchline/internal/folder"
)

// FileName is the name of the private key in the data folder.
const FileName = "gateway.key"

// pemType is that of a PKCS #8 key (RFC 5958).
const pemType = "PRIVATE KEY"

// maxFileBytes bounds what is read of the file: an Ed25519 key takes 119.
const maxFileBytes = 4 << 10

// A PublicKey is the public half.
type PublicKey [ed25519.PublicKeySize]byte

// publicPrefix says what the text form is of, so that no token or other
// base64 is taken for a key.
const publicPrefix = "ed25519:"

// String returns the text form: "ed25519:" and 43 characters of base64url.
func (p PublicKey) String() string {
	return publicPrefix + base64.RawURLEncoding.EncodeToString(p[:])
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (p PublicKey) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *PublicKey) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePublic(string(text))
	return err
}

// Verify says whether sig is this key's signature of message.
func (p PublicKey) Verify(message, sig []byte) bool {
	return ed25519.Verify(p[:], message, sig)
}

// Public returns the public half of a key.
func Public(key ed25519.PrivateKey) PublicKey {
	return PublicKey(key.Public().(ed25519.PublicKey))
}

// ParsePublic reads the form that String writes, and no other.
func ParsePublic(s string) (PublicKey, error) {
	var p PublicKey
	text, ok := strings.CutPrefix(s, publicPrefix)
	if !ok {
		return p, fmt.Errorf("public key %.60q: want %q and 43 characters, as `touchline key` prints it", s, publicPrefix)
	}
	// Strict, so that a key has one text form.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != len(p) || strings.ContainsAny(text, "\r\n") {
		return p, fmt.Errorf("public key %.60q: want %q and 43 characters, as `touchline key` prints it", s, publicPrefix)
	}
	copy(p[:], raw)
	return p, nil
}

// LoadOrMake returns the key in a data folder, and makes it where there is
// none: it is durable then, and readable by the folder's owner alone. A file
// that is there is never written to: one that can't be read as a key is an
// error, since a new key would be another gateway to everybody who knew it.
func LoadOrMake(dir string) (ed25519.PrivateKey, error) { return loadOrMake(dir, FileName) }

// Load returns the key in a data folder. Where there is none the error is
// os.ErrNotExist.
func Load(dir string) (ed25519.PrivateKey, error) { return load(dir, FileName) }

func loadOrMake(dir, name string) (ed25519.PrivateKey, error) {
	key, err := load(dir, name)
	if !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	if err := makeKey(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) { // another process was faster
		return nil, fmt.Errorf("make gateway key: %w", err)
	}
	return load(dir, name)
}

func load(dir, name string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read gateway key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileBytes {
		return nil, fmt.Errorf("gateway key %s is no key file: restore it from a backup; or move it away, and a new one is made, "+
			"whose public half the cloud must be told", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("gateway key %s can be reached by other users (mode %04o): chmod 600 it; if somebody may have read it, move it away "+
			"and enroll this gateway anew", path, mode)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read gateway key: %w", err)
	}
	key, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("gateway key %s is damaged (%w): restore it from a backup; or move it away, and a new one is made, "+
			"whose public half the cloud must be told", path, err)
	}
	return key, nil
}

func parse(data []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemType || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("want one PEM block %q", pemType)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("its PKCS #8 does not parse")
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("want an Ed25519 key, it is %T", any)
	}
	return key, nil
}

// makeKey writes a new key, and never replaces one.
func makeKey(file string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
	return folder.Create(file, text, 0o600)
}
