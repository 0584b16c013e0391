package credential

import (
	"strings"
	"testing"
)

// matches is MQTT 5, section 4.7, written down in another way than covers.
func matches(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		if level == "#" {
			return len(t) >= i
		}
		if i >= len(t) || level != "+" && level != t[i] {
			return false
		}
	}
	return len(f) == len(t)
}

// all returns every way to put up to depth levels together.
func all(levels []string, depth int) []string {
	var lists []string
	last := []string{""}
	for d := range depth {
		var next []string
		for _, head := range last {
			for _, level := range levels {
				if d == 0 {
					next = append(next, level)
				} else {
					next = append(next, head+"/"+level)
				}
			}
		}
		lists, last = append(lists, next...), next
	}
	return lists
}

// A filter is covered exactly if what it matches is matched: shown for every
// pair of filters of up to three levels, over every topic of up to four. z is
// in no filter: it stands for all words that nobody thought of.
func TestCovers_IsSetInclusion(t *testing.T) {
	var filters, topics []string
	for _, f := range all([]string{"a", "b", "", "$s", "+", "#"}, 3) {
		if CheckFilter(f) == nil {
			filters = append(filters, f)
		}
	}
	for _, topic := range all([]string{"a", "b", "", "$s", "$z", "z"}, 4) {
		if topic != "" {
			topics = append(topics, topic)
		}
	}
	matched := make([][]bool, len(filters))
	for i, f := range filters {
		matched[i] = make([]bool, len(topics))
		for j, topic := range topics {
			matched[i][j] = matches(f, topic)
		}
	}
	for i, allowed := range filters {
		for k, asked := range filters {
			want, witness := true, ""
			for j := range topics {
				if matched[k][j] && !matched[i][j] {
					want, witness = false, topics[j]
					break
				}
			}
			if asked == "/#" && strings.HasSuffix(allowed, "/+/#") {
				want = false // only since no topic is empty, the level above /#: refused, which is safe
			}
			if got := covers(allowed, asked); got != want {
				t.Errorf("covers(%q, %q) is %v (topic %q)", allowed, asked, got, witness)
			}
		}
	}
	t.Logf("MEASURED %d pairs of filters over %d topics: coverage is inclusion in each", len(filters)*len(filters), len(topics))
}

func TestCheckFilter(t *testing.T) {
	for _, good := range []string{"a", "/", "a/b", "+", "#", "+/+/#", "/#", "a//b", "$SYS/#", "$share/g/a/#", "a b/ü", strings.Repeat("a", MaxFilterBytes)} {
		if err := CheckFilter(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "a#", "#/a", "a/#/b", "a+/b", "+a", "##", "++", "a/b#", "a\x00", "\xff", strings.Repeat("a", MaxFilterBytes+1)} {
		if CheckFilter(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzCovers(f *testing.F) {
	for _, s := range []string{"sensors/#", "sensors/+/heart_rate", "#", "$SYS/#", "a//", "+/+", "$share/g/a"} {
		f.Add(s, s, s)
	}
	f.Fuzz(func(t *testing.T, allowed, asked, topic string) {
		if CheckFilter(allowed) != nil || CheckFilter(asked) != nil || CheckFilter(topic) != nil || strings.ContainsAny(topic, "+#") {
			return
		}
		if covers(allowed, asked) && matches(asked, topic) && !matches(allowed, topic) {
			t.Fatalf("%q covers %q, which matches %q", allowed, asked, topic)
		}
		if covers(allowed, topic) != matches(allowed, topic) {
			t.Fatalf("%q and topic %q", allowed, topic)
		}
		if !covers(asked, asked) {
			t.Fatalf("%q does not cover itself", asked)
		}
	})
}
