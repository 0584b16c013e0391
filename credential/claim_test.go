package credential

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestClaim_IsReadAsPeopleTypeIt(t *testing.T) {
	c := NewClaim()
	code := c.Reveal()
	if len(code) != claimLen+claimGroups-1 {
		t.Fatal(code)
	}
	for _, typed := range []string{
		code, strings.ToLower(code), strings.ReplaceAll(code, "-", ""), strings.ReplaceAll(code, "-", " "), "  " + code + "\t",
		strings.ReplaceAll(code, "0", "O"), strings.ReplaceAll(code, "0", "o"), strings.ReplaceAll(code, "1", "I"), strings.ReplaceAll(code, "1", "l"),
	} {
		read, err := ParseClaim(typed)
		if err != nil || read.Hash() != c.Hash() || !read.Matches(c.Hash()) || read.Reveal() != code {
			t.Errorf("%q: %v", typed, err)
		}
	}
	if c.Matches(NewClaim().Hash()) || (Claim{}).Matches(c.Hash()) || (Claim{}).Reveal() != "" {
		t.Error("another code has this hash")
	}
}

// Every single typo, and every exchange of two characters of a group or of two
// groups, in a hundred codes: found, and the group is named.
func TestParseClaim_FindsTypos(t *testing.T) {
	tried := 0
	refused := func(code []byte, group int) {
		t.Helper()
		tried++
		_, err := ParseClaim(string(code))
		if err == nil {
			t.Fatalf("%s has a typo in group %d, and is taken", code, group+1)
		}
		if want := "group " + string(rune('1'+group)); !strings.Contains(err.Error(), want) {
			t.Fatalf("%v: want %s", err, want)
		}
	}
	for range 100 {
		code := []byte(strings.ReplaceAll(NewClaim().Reveal(), "-", ""))
		for i := range code {
			was := code[i]
			for _, c := range []byte(crockford) {
				if c != was {
					code[i] = c
					refused(code, i/claimGroup)
				}
			}
			code[i] = was
			for j := i + 1; j < i/claimGroup*claimGroup+claimGroup; j++ {
				if code[i] != code[j] {
					code[i], code[j] = code[j], code[i]
					refused(code, i/claimGroup)
					code[i], code[j] = code[j], code[i]
				}
			}
		}
		for g := range claimGroups {
			for h := g + 1; h < claimGroups; h++ {
				swapped := []byte(string(code))
				copy(swapped[g*claimGroup:], code[h*claimGroup:(h+1)*claimGroup])
				copy(swapped[h*claimGroup:], code[g*claimGroup:(g+1)*claimGroup])
				refused(swapped, g)
			}
		}
	}
	t.Logf("MEASURED %d typos in claim codes: each was found and its group named", tried)
}

func TestParseClaim_SaysWhatIsWrongWithoutQuoting(t *testing.T) {
	code := NewClaim().Reveal()
	for typed, want := range map[string]string{
		"":                        "has 0 characters",
		code[:len(code)-1]:        "has 19 characters",
		code + "0":                "has 21 characters",
		"U" + code[1:]:            "group 1 has a character that is in no code",
		code[:6] + "é" + code[7:]: "group 2 has a character that is in no code",
		strings.Repeat("0", 1e6):  "has 1000000 characters",
	} {
		_, err := ParseClaim(typed)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %v, want %q", typed, err, want)
		} else if strings.Contains(err.Error(), code[:4]) {
			t.Error("the error quotes the code:", err)
		}
	}
}

func TestNewClaim_DrawsEveryCharacterEvenly(t *testing.T) {
	counts := map[byte]int{}
	const codes = 4000
	for range codes {
		code := strings.ReplaceAll(NewClaim().Reveal(), "-", "")
		for g := range claimGroups {
			for i := range claimDrawn {
				counts[code[g*claimGroup+i]]++
			}
		}
	}
	// 64,000 draws of 32: 2,000 each with a deviation of 44; ten of these happen never.
	for _, c := range []byte(crockford) {
		if n := counts[c]; n < 2000-440 || n > 2000+440 {
			t.Errorf("%c was drawn %d times of %d", c, n, codes*claimGroups*claimDrawn)
		}
	}
}

func TestBase62_DrawsEveryCharacterEvenly(t *testing.T) {
	counts := map[rune]int{}
	for _, c := range random62(124_000) {
		counts[c]++
	}
	for _, c := range base62 {
		if n := counts[c]; n < 2000-440 || n > 2000+440 {
			t.Errorf("%c was drawn %d times", c, n)
		}
	}
}

func TestTranscript_NoTwoListsReadTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 4), 0, 4)
		a, b := list.Draw(t, "a"), list.Draw(t, "b")
		same := len(a) == len(b)
		for i := 0; same && i < len(a); i++ {
			same = string(a[i]) == string(b[i])
		}
		if (string(transcript("x", a...)) == string(transcript("x", b...))) != same {
			t.Fatal(a, b)
		}
	})
}

func FuzzParseClaim(f *testing.F) {
	f.Add("")
	f.Add("0000G-00000-00000-00000")
	f.Add(NewClaim().Reveal())
	f.Add("oOiIlL- -\t")
	f.Fuzz(func(t *testing.T, typed string) {
		c, err := ParseClaim(typed)
		if err != nil {
			return
		}
		again, err := ParseClaim(c.Reveal())
		if err != nil || again.Hash() != c.Hash() {
			t.Fatalf("%q is read, and %q is not the same: %v", typed, c.Reveal(), err)
		}
	})
}
