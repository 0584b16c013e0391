package credential

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxFilterBytes bounds topics and filters; the longest topic of a sensor,
// sensors/<sensor>/<metric>, has 265.
const MaxFilterBytes = 512

// CheckFilter says whether s is an MQTT topic filter (MQTT 5, section 4.7):
// levels between slashes, + for one level, # for all that follow.
func CheckFilter(s string) error {
	if err := checkTopicText(s); err != nil {
		return fmt.Errorf("topic filter %.80q: %w", s, err)
	}
	for rest, more := s, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return fmt.Errorf("topic filter %.80q: level %.40q has a wildcard beside other characters", s, level)
		}
		if level == "#" && more {
			return fmt.Errorf("topic filter %.80q: # is not its last level", s)
		}
	}
	return nil
}

func checkTopicText(s string) error {
	if s == "" || len(s) > MaxFilterBytes {
		return fmt.Errorf("it has %d bytes: want 1 to %d", len(s), MaxFilterBytes)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return errors.New("it is no UTF-8, or has a zero byte")
	}
	return nil
}

// splitShare takes $share/<group>/<filter> (MQTT 5, section 4.8.2) apart. What
// is no shared subscription is its own filter.
func splitShare(s string) (filter string, err error) {
	rest, shared := strings.CutPrefix(s, "$share/")
	if !shared && s != "$share" {
		return s, nil
	}
	group, filter, ok := strings.Cut(rest, "/")
	if !ok || group == "" || strings.ContainsAny(group, "+#") || filter == "" {
		return "", fmt.Errorf("shared subscription %.80q: want $share/<group>/<filter>", s)
	}
	return filter, nil
}

// covers says whether every topic that asked matches is matched by allowed
// too. Both are valid filters; a topic is a filter without wildcards.
//
// A wildcard at the first level matches no topic that begins with $ (MQTT 5,
// section 4.7.2): # does not cover $SYS/#. And # matches the level before it
// too: a/# covers a.
func covers(allowed, asked string) bool {
	if asked == "#" && allowed == "+/#" {
		return true // no topic is above the first level, so both are all of them
	}
	if strings.HasPrefix(asked, "$") && !strings.HasPrefix(allowed, "$") {
		return false // allowed begins with a wildcard, or with another word
	}
	for {
		a, allowedRest, allowedMore := strings.Cut(allowed, "/")
		b, askedRest, askedMore := strings.Cut(asked, "/")
		switch {
		case a == "#":
			return true
		case b == "#":
			return false // it goes deeper, and is the level above as well
		case a != "+" && a != b:
			return false
		case !askedMore:
			return !allowedMore || allowedRest == "#"
		case !allowedMore:
			return false
		}
		allowed, asked = allowedRest, askedRest
	}
}
