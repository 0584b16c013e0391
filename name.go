package touchline

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxNameBytes bounds the names of sensors, metrics, units and gateways.
const MaxNameBytes = 128

// CheckSensor says whether s may name a sensor: 1 to MaxNameBytes bytes of
// UTF-8 without a slash (it separates sensor and metric), the MQTT wildcards
// + and #, or control characters.
func CheckSensor(s string) error { return checkName("sensor name", s, "/+#") }

// CheckMetric says whether s may name a metric: as for sensors, but a slash
// is allowed, since SenML names have more than two parts at times.
func CheckMetric(s string) error { return checkName("metric name", s, "+#") }

// CheckGateway says whether s may name a gateway; it travels in an HTTP
// header, so only letters, digits and -._ are allowed.
func CheckGateway(s string) error {
	if err := checkName("gateway id", s, "/+#"); err != nil {
		return err
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._", r)) {
			return fmt.Errorf("gateway id %q has %q: use letters, digits, '-', '.' and '_'", s, r)
		}
	}
	return nil
}

// CheckUnit says whether s may be a unit: empty, or a short name.
func CheckUnit(s string) error {
	if s == "" {
		return nil
	}
	return checkName("unit", s, "")
}

func checkName(what, s, forbidden string) error {
	if s == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if len(s) > MaxNameBytes {
		return fmt.Errorf("%s %.20q… has %d bytes: at most %d are allowed", what, s, len(s), MaxNameBytes)
	}
	ascii := true
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < 0x20 || c == 0x7f {
			return fmt.Errorf("%s %q has the control character 0x%02x at byte %d", what, s, c, i)
		}
		if c >= utf8.RuneSelf {
			ascii = false
		}
		if forbidden != "" && strings.IndexByte(forbidden, c) >= 0 {
			return fmt.Errorf("%s %q has %q at byte %d, which is not allowed there", what, s, c, i)
		}
	}
	if ascii {
		return nil
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s %q is not valid UTF-8", what, s)
	}
	for i, r := range s {
		if unicode.IsControl(r) { // a terminal takes U+009B for the beginning of a command
			return fmt.Errorf("%s %q has the control character %U at byte %d", what, s, r, i)
		}
	}
	return nil
}

// ErrTime is wrapped by the errors of CheckTime.
var ErrTime = errors.New("time out of bounds")

// maxAhead is how far in the future a sample's time may lie. A wrong clock
// puts it decades away; a century is surely a wrong unit.
const maxAhead = 100 * 365 * 24 * time.Hour

// CheckTime says whether t (ns since the Unix epoch) is a plausible time of a
// sample as seen at now: not before 1970, not a century ahead. The century
// counts from Released where now is before it: a gateway without a clock must
// not refuse a sensor that has one. Decoders of blocks do not apply it: they
// return any int64.
func CheckTime(t int64, now time.Time) error {
	if t < 0 {
		return fmt.Errorf("%w: %s is before 1970", ErrTime, time.Unix(0, t).UTC().Format(time.RFC3339))
	}
	from := max(now.UnixNano(), Released)
	if from <= math.MaxInt64-int64(maxAhead) && t > from+int64(maxAhead) {
		return fmt.Errorf("%w: %s is more than a century ahead (is the unit nanoseconds?)", ErrTime, time.Unix(0, t).UTC().Format(time.RFC3339))
	}
	return nil
}
