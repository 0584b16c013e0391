package credential

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"touchline/identity"
)

// What others build against is written in FORMAT.md. Each example there is
// made here anew, so that neither can change alone.
func TestFormat_ExamplesAreTrue(t *testing.T) {
	doc := read(t, "FORMAT.md")
	holds := func(what, want string) {
		t.Helper()
		if !strings.Contains(doc, "`"+want+"`") {
			t.Errorf("FORMAT.md has no %s `%s`", what, want)
		}
	}
	seed := func(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }
	one, two := seed(1), seed(2)
	holds("public key", identity.Public(one).String())
	holds("thumbprint", Thumbprint(PublicKey(one)))

	claim, err := ParseClaim("ABCDH-EFGHP-JKMNG-PQRSF")
	if err != nil {
		var mended []string
		for g, group := range []string{"ABCD", "EFGH", "JKMN", "PQRS"} {
			mended = append(mended, group+string(claimCheck(g, []byte(group))))
		}
		t.Fatal(err, strings.Join(mended, "-"))
	}
	holds("claim code", claim.Reveal())
	hash := claim.Hash()
	holds("hash of it", hex.EncodeToString(hash[:]))

	e, err := NewEnrolment(claim, one, "north", "nonce")
	if err != nil {
		t.Fatal(err)
	}
	holds("enrolment", base64.StdEncoding.EncodeToString(e.Signature))
	roll, err := NewKeyRoll("north", one, two, time.Date(2026, 7, 12, 18, 30, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	holds("roll by the old key", base64.StdEncoding.EncodeToString(roll.ByOld))
	holds("roll by the new key", base64.StdEncoding.EncodeToString(roll.ByNew))

	body := "tlk_" + strings.Repeat("A", apiIDLen) + "_" + strings.Repeat("0", secretLen)
	holds("API key", body+"_"+check62(body))
	key, err := ParseAPIKey(body + "_" + check62(body))
	if err != nil {
		t.Fatal(err)
	}
	hash = key.Hash()
	holds("hash of it", hex.EncodeToString(hash[:]))
	for _, scope := range scopeNames {
		holds("scope", scope)
	}
	if !strings.Contains(doc, strings.TrimSpace(sensorFileHead)) {
		t.Error("FORMAT.md has another head of the file of sensors' keys")
	}
}

// RFC 8037, appendix A.3.
func TestThumbprint_IsTheOneOfTheRFC(t *testing.T) {
	key, err := identity.ParsePublic("ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	if got := Thumbprint(key[:]); got != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Error(got)
	}
}
