package credential

import (
	"fmt"
	"strings"
)

// Scopes are what an API key may do: a set, small and closed.
type Scopes uint8

// The scopes, with the names that people and the store use.
const (
	ReadSamples Scopes = 1 << iota // read:samples: query and export what is recorded
	ReadLive                       // read:live: follow samples as they come
	ReadStatus                     // read:status: gateways, sessions, losses, metrics
	Admin                          // admin: claims, gateways and keys; and all of the above
)

const allScopes = ReadSamples | ReadLive | ReadStatus | Admin

// scopeNames are in the order of the bits.
var scopeNames = [...]string{"read:samples", "read:live", "read:status", "admin"}

// Allow says whether a key with scopes s may do what needs all of need.
// Nothing needs nothing: an empty need is never allowed.
func (s Scopes) Allow(need Scopes) bool {
	if s&Admin != 0 {
		s = allScopes
	}
	return need != 0 && need&^s == 0
}

// String returns the names, separated by commas; "" for none.
func (s Scopes) String() string {
	var names []string
	for i, name := range scopeNames {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// ParseScopes reads names separated by commas, at least one.
func ParseScopes(list string) (Scopes, error) {
	var s Scopes
	for name := range strings.SplitSeq(list, ",") {
		i := scopeIndex(strings.TrimSpace(name))
		if i < 0 {
			return 0, fmt.Errorf("%.40q is no scope: want one or more of %s, separated by commas", name, strings.Join(scopeNames[:], ", "))
		}
		s |= 1 << i
	}
	return s, nil
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (s Scopes) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseScopes.
func (s *Scopes) UnmarshalText(text []byte) (err error) {
	*s, err = ParseScopes(string(text))
	return err
}

func scopeIndex(name string) int {
	for i, known := range scopeNames {
		if name == known {
			return i
		}
	}
	return -1
}
