package credential

import (
	"regexp"
	"strings"
	"testing"
)

func TestAPIKey_RoundTrip(t *testing.T) {
	pattern := regexp.MustCompile(APIKeyPattern)
	seen := map[string]bool{}
	for range 100 {
		k := NewAPIKey()
		text := k.Reveal()
		read, err := ParseAPIKey(text)
		if err != nil || read.ID() != k.ID() || !read.Matches(k.Hash()) || read.Reveal() != text || seen[k.ID()] {
			t.Fatal(text, err)
		}
		seen[k.ID()] = true
		if pattern.FindString("x="+text+";") != text {
			t.Fatal("a scanner does not find", text)
		}
		if strings.Contains(k.String(), text[15:58]) || k.String() != "tlk_"+k.ID()+"_…" {
			t.Fatal(k.String())
		}
	}
	if NewAPIKey().Matches(NewAPIKey().Hash()) || NewAPIKey().Matches([32]byte{}) {
		t.Error("another key matches")
	}
}

func TestParseAPIKey_FindsTypos(t *testing.T) {
	text := NewAPIKey().Reveal()
	tried := 0
	for i := range text {
		for _, c := range []byte(base62 + "_-") {
			if c == text[i] {
				continue
			}
			tried++
			typo := text[:i] + string(c) + text[i+1:]
			if _, err := ParseAPIKey(typo); err == nil {
				t.Fatalf("%q for %q is taken", typo, text)
			} else if strings.Contains(err.Error(), text[15:58]) {
				t.Fatal("the error quotes the key:", err)
			}
		}
	}
	for _, bad := range []string{"", "tlk_", text[:len(text)-1], text + "0", " " + text, "TLK" + text[3:], strings.Repeat("_", len(text)), strings.ReplaceAll(text, "_", "-")} {
		if _, err := ParseAPIKey(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	t.Logf("MEASURED %d typos in an API key: each was found", tried)
}

func TestScopes(t *testing.T) {
	for text, want := range map[string]Scopes{
		"read:samples": ReadSamples, "read:live,read:samples": ReadSamples | ReadLive, " admin , admin ": Admin, "read:status": ReadStatus,
	} {
		got, err := ParseScopes(text)
		if err != nil || got != want {
			t.Error(text, got, err)
		}
		again, err := ParseScopes(got.String())
		if err != nil || again != got {
			t.Error(got.String(), err)
		}
	}
	for _, bad := range []string{"", ",", "read", "read:samples,", "READ:SAMPLES", "admin root", "read:*"} {
		if s, err := ParseScopes(bad); err == nil {
			t.Errorf("%q is %s", bad, s)
		}
	}
	for _, test := range []struct {
		have, need Scopes
		want       bool
	}{
		{ReadSamples, ReadSamples, true}, {ReadSamples, ReadLive, false}, {ReadSamples | ReadLive, ReadLive, true},
		{ReadSamples, ReadSamples | ReadLive, false}, {Admin, ReadSamples | ReadLive | ReadStatus, true},
		{ReadSamples | ReadLive | ReadStatus, Admin, false}, {0, ReadSamples, false}, {0, 0, false}, {Admin, 0, false},
		{Admin, 1 << 7, false}, {1 << 7, Admin, false},
	} {
		if got := test.have.Allow(test.need); got != test.want {
			t.Errorf("%q allows %q: %v", test.have, test.need, got)
		}
	}
}

func FuzzParseAPIKey(f *testing.F) {
	f.Add("tlk_")
	f.Add(NewAPIKey().Reveal())
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseAPIKey(text)
		if err == nil && (k.Reveal() != text || len(text) != apiKeyLen) {
			t.Fatalf("%q", text)
		}
	})
}

func FuzzParseScopes(f *testing.F) {
	f.Add("read:samples,read:live, admin")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseScopes(text)
		if err != nil {
			return
		}
		if again, err := ParseScopes(s.String()); err != nil || again != s || s == 0 || s&^allScopes != 0 {
			t.Fatalf("%q: %s, %s, %v", text, s, again, err)
		}
	})
}

func BenchmarkAPIKey_ParseAndMatch(b *testing.B) {
	text, hash := NewAPIKey().Reveal(), [32]byte{}
	b.ReportAllocs()
	for b.Loop() {
		k, err := ParseAPIKey(text)
		if err != nil || k.Matches(hash) {
			b.Fatal(err)
		}
	}
}
