package touchline_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"touchline"
)

func TestCheckNames(t *testing.T) {
	long := strings.Repeat("n", touchline.MaxNameBytes)
	checks := map[string]func(string) error{
		"sensor": touchline.CheckSensor, "metric": touchline.CheckMetric,
		"unit": touchline.CheckUnit, "gateway": touchline.CheckGateway,
	}
	all := "sensor metric unit gateway"
	for _, test := range []struct{ name, allowed string }{
		{"belt-07", all},
		{"a", all},
		{long, all},
		{long + "n", ""},
		{strings.Repeat("é", touchline.MaxNameBytes/2), "sensor metric unit"},
		{strings.Repeat("é", touchline.MaxNameBytes/2) + "n", ""},
		{"", "unit"},
		{"north stand", "sensor metric unit"},
		{"größe", "sensor metric unit"},
		{"心拍", "sensor metric unit"},
		{"a/b", "metric unit"},
		{"beat/min", "metric unit"},
		{"a+", "unit"},
		{"#", "unit"},
		{"%", "sensor metric unit"},
		{"a\x00b", ""},
		{"a\nb", ""},
		{"a\x7f", ""},
		{"\xff", ""},
		{"a\xc3", ""},
		{"\xed\xa0\x80", ""}, // a surrogate
		{"Gateway_1.north-stand", all},
	} {
		for what, check := range checks {
			err := check(test.name)
			if allowed := strings.Contains(test.allowed, what); (err == nil) != allowed {
				t.Errorf("%s %.40q: got %v, want allowed to be %v", what, test.name, err, allowed)
			}
		}
	}
}

func TestCheckNames_SayWhatIsWrongAndWhere(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{touchline.CheckSensor(""), "sensor name is empty"},
		{touchline.CheckSensor("ab/c"), `sensor name "ab/c" has '/' at byte 2`},
		{touchline.CheckMetric("x\x00"), "metric name"},
		{touchline.CheckMetric("x\x00"), "control character 0x00 at byte 1"},
		{touchline.CheckSensor("é\u009bK"), "control character U+009B at byte 2"},
		{touchline.CheckSensor(strings.Repeat("x", 5000)), "has 5000 bytes: at most 128 are allowed"},
		{touchline.CheckUnit("\xff"), `unit "\xff" is not valid UTF-8`},
		{touchline.CheckGateway("a b"), "use letters, digits"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("got %v, want …%s…", test.err, test.want)
		} else if len(test.err.Error()) > 200 {
			t.Errorf("the message has %d bytes", len(test.err.Error()))
		}
	}
}

func TestCheckTime_RefusesNoRightTimeForAWrongClock(t *testing.T) {
	right := time.Date(2031, 5, 30, 20, 45, 0, 0, time.UTC)
	for _, year := range []int{1678, 1970, 1999, 2025, 2099, 2163, 2200, 2262} { // what ns since 1970 reach
		if err := touchline.CheckTime(right.UnixNano(), time.Date(year, 12, 1, 0, 0, 0, 0, time.UTC).Add(-300*24*time.Hour)); err != nil {
			t.Errorf("by a clock that shows %d: %v", year, err)
		}
	}
}

func TestCheckTime(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		ns int64
		ok bool
	}{
		{0, true},
		{-1, false},
		{math.MinInt64, false},
		{now.UnixNano(), true},
		{now.AddDate(99, 0, 0).UnixNano(), true},
		{now.AddDate(101, 0, 0).UnixNano(), false},
		{math.MaxInt64, false},
	} {
		if err := touchline.CheckTime(test.ns, now); (err == nil) != test.ok || err != nil && !errors.Is(err, touchline.ErrTime) {
			t.Errorf("%d: got %v, want ok to be %v", test.ns, err, test.ok)
		}
	}
}
