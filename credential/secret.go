package credential

import (
	"bytes"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[secret]"

// A Secret is text that belongs in no log, error or dump. Whichever way it is
// printed, logged or marshalled, alone or inside another value, it shows as
// [secret]; only Reveal gives the text, so that every use can be searched for.
//
// It is a struct and not a string: fmt prints a string type raw where it can't
// call its methods, in an unexported field or under a wrong verb. Comparing
// with == does not compile; Equal takes constant time. The zero Secret is the
// empty text. Memory is not wiped: Go copies as it likes.
type Secret struct {
	_    [0]func()
	text *string
}

// NewSecret hides text.
func NewSecret(text string) Secret { return Secret{text: &text} }

// Reveal returns the text, to send it or to show it to a person once.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty says whether there is no text.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// Equal compares in time that depends on the lengths only.
func (s Secret) Equal(other Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal())) == 1
}

// String returns [secret].
func (s Secret) String() string { return redacted }

// GoString returns [secret].
func (s Secret) GoString() string { return redacted }

// Format implements fmt.Formatter: every verb prints [secret].
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText returns [secret]; encoding/json and config use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText takes any text, so that a Secret can be a field of what is
// read: a setting, a message.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(bytes.Clone(text)))
	return nil
}

// LogValue returns [secret].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
