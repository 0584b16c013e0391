package credential

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"
)

func TestEnrolment_HoldsForExactlyWhatWasSigned(t *testing.T) {
	claim, key := NewClaim(), NewGatewayKey()
	nonces, _ := NewNonces()
	good, err := NewEnrolment(claim, key, "north", nonces.New())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	var e Enrolment
	if err := json.Unmarshal(text, &e); err != nil || e.Verify(claim.Hash()) != nil {
		t.Fatal(err, e.Verify(claim.Hash()))
	}
	for name, change := range map[string]func(*Enrolment){
		"gateway":       func(e *Enrolment) { e.Gateway = "south" },
		"bad gateway":   func(e *Enrolment) { e.Gateway = "a/b" },
		"nonce":         func(e *Enrolment) { e.Nonce = nonces.New() },
		"no nonce":      func(e *Enrolment) { e.Nonce = "" },
		"key":           func(e *Enrolment) { e.Public = PublicKey(gatewayKey('o')) },
		"no key":        func(e *Enrolment) { e.Public = nil },
		"long key":      func(e *Enrolment) { e.Public = append(bytes.Clone(e.Public), 0) },
		"signature":     func(e *Enrolment) { e.Signature[0] ^= 1 },
		"no signature":  func(e *Enrolment) { e.Signature = nil },
		"moved a byte":  func(e *Enrolment) { e.Nonce, e.Gateway = e.Nonce+e.Gateway[:1], e.Gateway[1:] },
		"another's own": func(e *Enrolment) { *e, _ = NewEnrolment(NewClaim(), NewGatewayKey(), "north", e.Nonce) },
	} {
		e := good
		e.Signature = bytes.Clone(good.Signature)
		change(&e)
		if err := e.Verify(claim.Hash()); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := good.Verify(NewClaim().Hash()); !errors.Is(err, ErrProof) {
		t.Error("another code:", err)
	}
	if _, err := NewEnrolment(claim, nil, "north", "n"); err == nil {
		t.Error("an enrolment without a key was signed")
	}
}

func TestKeyRoll_KeepsTheOldKeyForItsOverlap(t *testing.T) {
	a := gatewayKey('a')
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	known := []GatewayKey{{Public: PublicKey(a)}}
	roll := func(old, next byte, from time.Time) KeyRoll {
		r, err := NewKeyRoll("north", gatewayKey(old), gatewayKey(next), from)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := roll('a', 'b', time.Time{})
	keys, err := first.Verify(known, now)
	if err != nil || len(keys) != 2 {
		t.Fatal(keys, err)
	}
	counts := func(keys []GatewayKey, at time.Time) (which string) {
		for _, k := range keys {
			for _, name := range []byte("abc") {
				if k.Counts(at) && k.Public.Equal(PublicKey(gatewayKey(name))) {
					which += string(name)
				}
			}
		}
		return which
	}
	for _, test := range []struct {
		at   time.Time
		want string
	}{{now.Add(-1), "a"}, {now, "ab"}, {now.Add(RollOverlap - 1), "ab"}, {now.Add(RollOverlap), "b"}} {
		if got := counts(keys, test.at); got != test.want {
			t.Errorf("at %s: %s, want %s", test.at, got, test.want)
		}
	}
	again, err := first.Verify(keys, now.Add(time.Hour))
	if err != nil || counts(again, now.Add(RollOverlap)) != "b" || !again[0].NotAfter.Equal(keys[0].NotAfter) {
		t.Error("a repeat of the statement:", again, err)
	}
	third, err := roll('b', 'c', now.Add(time.Hour)).Verify(keys, now)
	if err != nil || counts(third, now) != "b" || counts(third, now.Add(time.Hour)) != "bc" {
		t.Error("a second roll within the overlap:", third, err)
	}
	for _, sent := range []KeyRoll{first, roll('a', 'b', now.Add(time.Hour))} {
		text, err := json.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		var got KeyRoll
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if _, err := got.Verify(known, now); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for name, r := range map[string]KeyRoll{"a repeat of the first roll": first, "by a key that was rolled away from": roll('a', 'c', time.Time{})} {
		if keys, err := r.Verify(third, now); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v %v", name, keys, err)
		}
	}
	if keys, err := roll('a', 'c', time.Time{}).Verify(keys, now); !errors.Is(err, ErrProof) {
		t.Error("by the older of two keys:", keys, err)
	}
}

func TestKeyRoll_RefusesWhatIsNotSignedByBoth(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	known := []GatewayKey{{Public: PublicKey(gatewayKey('a'))}}
	good, err := NewKeyRoll("north", gatewayKey('a'), gatewayKey('b'), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*KeyRoll){
		"gateway":          func(r *KeyRoll) { r.Gateway = "south" },
		"new key":          func(r *KeyRoll) { r.New = PublicKey(gatewayKey('c')) },
		"a short key":      func(r *KeyRoll) { r.New = r.New[:31] },
		"time":             func(r *KeyRoll) { r.ValidFrom = r.ValidFrom.Add(time.Second) },
		"at once":          func(r *KeyRoll) { r.ValidFrom = time.Time{} },
		"before 1970":      func(r *KeyRoll) { r.ValidFrom = time.Unix(-5, 0) },
		"a part of second": func(r *KeyRoll) { r.ValidFrom = r.ValidFrom.Add(1) },
		"not by the old":   func(r *KeyRoll) { r.ByOld = r.ByNew },
		"not by the new":   func(r *KeyRoll) { r.ByNew = r.ByOld },
		"by nobody":        func(r *KeyRoll) { r.ByOld, r.ByNew = nil, nil },
		"of a stranger":    func(r *KeyRoll) { *r, _ = NewKeyRoll("north", gatewayKey('x'), gatewayKey('b'), time.Time{}) },
		"far ahead": func(r *KeyRoll) {
			*r, _ = NewKeyRoll("north", gatewayKey('a'), gatewayKey('b'), now.Add(RollOverlap+time.Second))
		},
	} {
		r := good
		change(&r)
		if keys, err := r.Verify(known, now); !errors.Is(err, ErrProof) || keys != nil {
			t.Errorf("%s: %v %v", name, keys, err)
		}
	}
	over := []GatewayKey{{Public: PublicKey(gatewayKey('a')), NotAfter: now}}
	for name, keys := range map[string][]GatewayKey{"no key": nil, "a key that is over": over, "a key of no length": {{}}} {
		if keys, err := good.Verify(keys, now); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v %v", name, keys, err)
		}
	}
	if _, err := NewKeyRoll("north", gatewayKey('a'), gatewayKey('a'), now); err == nil {
		t.Error("a roll to the same key was signed")
	}
}

// What is signed for one purpose says nothing for another, though one key signs
// all: a token is base64url, and each statement begins with its purpose.
func TestSignatures_AreForOnePurposeOnly(t *testing.T) {
	seen := map[string]bool{}
	fields := [][]byte{[]byte("a"), []byte("b")}
	for _, context := range []string{"touchline enrolment v1", "touchline key roll v1", "touchline claim v1", "touchline used nonce v1", "touchline used token v1"} {
		s := string(transcript(context, fields...))
		if seen[s] || !bytes.ContainsRune([]byte(s), ' ') || !bytes.ContainsRune([]byte(s), 0) {
			t.Error(context)
		}
		seen[s] = true
	}
}
