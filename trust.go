package touchline

import (
	"fmt"
	"strings"

	"touchline/identity"
)

// ParseTrust reads one entry of buffer.import_keys, "ID=KEY": that KEY is the
// public key of the gateway ID.
func ParseTrust(s string) (gateway string, key identity.PublicKey, err error) {
	gateway, text, ok := strings.Cut(s, "=")
	if !ok {
		return "", key, fmt.Errorf("%.80q: want ID=KEY, the gateway's id and the key that `touchline key` prints there", s)
	}
	if err := CheckGateway(gateway); err != nil {
		return "", key, err
	}
	if key, err = identity.ParsePublic(text); err != nil {
		return "", key, fmt.Errorf("gateway %s: %w", gateway, err)
	}
	return gateway, key, nil
}
