package credential

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// holder has secrets where fmt can't call their methods.
type holder struct {
	Open   any
	hidden Secret
	claim  Claim
	key    APIKey
	list   []Secret
}

func TestSecrets_AreNeverPrinted(t *testing.T) {
	secret, claim, key := NewSecret("hunter2hunter2"), NewClaim(), NewAPIKey()
	secrets := []string{"hunter2", claim.Reveal(), strings.ReplaceAll(claim.Reveal(), "-", ""), key.Reveal(), key.Reveal()[15:58]}
	for _, value := range []any{
		secret, &secret, claim, &claim, key, &key,
		holder{secret, secret, claim, key, []Secret{secret}}, &holder{claim, secret, claim, key, []Secret{secret}},
		map[string]any{"a": secret, "b": claim, "c": key}, []any{secret, claim, key},
		fmt.Errorf("dial: %v", secret), Handshake{},
	} {
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%w", "%5.1f", "%c", "%U"} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "value", value)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "value", value)
		if text, err := json.Marshal(value); err == nil {
			out.Write(text)
		}
		for _, s := range secrets {
			if strings.Contains(out.String(), s) || strings.Contains(out.String(), fmt.Sprintf("%x", s)) {
				t.Errorf("%T shows a secret:\n%s", value, out.String())
			}
		}
	}
	if secret.Reveal() != "hunter2hunter2" {
		t.Error("Reveal does not")
	}
}

func TestSecret_EqualAndZero(t *testing.T) {
	var zero Secret
	if !zero.Empty() || !zero.Equal(NewSecret("")) || zero.Equal(NewSecret("a")) || !NewSecret("a").Equal(NewSecret("a")) || zero.String() != redacted {
		t.Error("the zero secret is not the empty text, or Equal is wrong")
	}
	var read Secret
	if err := json.Unmarshal([]byte(`"abc"`), &read); err != nil || read.Reveal() != "abc" {
		t.Error("a secret can't be read")
	}
}
