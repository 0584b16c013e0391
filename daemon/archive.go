package daemon

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"

	"touchline"
	"touchline/archive"
	"touchline/identity"
	"touchline/wire"
)

// A source is what an archive is made of: a buffer that is open, or one that
// is read.
type source interface {
	Export(ctx context.Context, all bool, take func([]wire.Block) error) ([]wire.Lost, error)
}

type exportOptions struct {
	dir     string // of the gateway's key
	gateway string
	all     bool // also what the cloud has
}

// writeArchive writes an archive of what is held, signed with the gateway's
// key, which is made where there is none.
func writeArchive(ctx context.Context, from source, o exportOptions, to io.Writer) (archive.Summary, error) {
	key, err := identity.LoadOrMake(o.dir)
	if err != nil {
		return archive.Summary{}, err
	}
	return signArchive(ctx, from, key, archive.Header{Gateway: o.gateway, Software: "touchline/" + touchline.Version}, o.all, to)
}

func signArchive(ctx context.Context, from source, key ed25519.PrivateKey, h archive.Header, all bool, to io.Writer) (archive.Summary, error) {
	w, err := archive.NewWriter(to, key, h)
	if err != nil {
		return archive.Summary{}, err
	}
	lost, err := from.Export(ctx, all, w.Blocks)
	if err == nil {
		err = w.Lost(lost)
	}
	if err != nil {
		return archive.Summary{}, err
	}
	return w.End()
}

// errUntrusted says that nobody vouched for the key of an archive.
var errUntrusted = errors.New("unknown key")

// trustOf makes of entries of buffer.import_keys who is trusted.
func trustOf(entries []string) (archive.Trust, error) {
	keys := make(map[string][]identity.PublicKey)
	for _, entry := range entries {
		gateway, key, err := touchline.ParseTrust(entry)
		if err != nil {
			return nil, fmt.Errorf("key to trust: %w", err)
		}
		keys[gateway] = append(keys[gateway], key)
	}
	return func(h archive.Header) error {
		if slices.Contains(keys[h.Gateway], h.Key) {
			return nil
		}
		return fmt.Errorf("%w: the archive says it is of gateway %s, signed with %s; where `touchline key` prints that key on that gateway, "+
			"put \"%s=%s\" into buffer.import_keys, or say --trust %s=%s", errUntrusted, h.Gateway, h.Key, h.Gateway, h.Key, h.Gateway, h.Key)
	}, nil
}
