package credential

import (
	"strings"
	"testing"
)

func newACL(t testing.TB) *ACL {
	t.Helper()
	acl, err := NewACL([]Rule{
		{Sensor: "display", Subscribe: []string{"sensors/+/heart_rate", "venue/#"}},
		{Sensor: "monitor", Subscribe: []string{"$SYS/#", "sensors/#"}},
		{Sensor: "all", Subscribe: []string{"#"}},
		{Sensor: "none", Subscribe: nil},
		{Sensor: AnySensor, Subscribe: []string{"sensors/{sensor}/#", "news"}},
		{Sensor: "coach", Subscribe: []string{"sensors/{sensor}/cues", "x{sensor}"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return acl
}

func TestACL_Subscribe(t *testing.T) {
	acl := newACL(t)
	for _, test := range []struct {
		sensor, filter string
		want           bool
	}{
		{"display", "sensors/+/heart_rate", true},
		{"display", "sensors/belt/heart_rate", true},
		{"display", "sensors/#", false},
		{"display", "sensors/+/+", false},
		{"display", "sensors/+/#", false},
		{"display", "sensors/+/power", false},
		{"display", "sensors/belt/heart_rate/raw", false},
		{"display", "#", false},
		{"display", "+/belt/heart_rate", false},
		{"display", "venue", true},
		{"display", "venue/a/b/#", true},
		{"display", "venue2", false},
		{"display", "$share/g/sensors/+/heart_rate", true},
		{"display", "$share/g/sensors/#", false},
		{"display", "$share/g/#", false},
		{"display", "$share/+/venue", false},
		{"display", "$share/g", false},
		{"display", "$share/g/", false},
		{"display", "$share//venue", false},
		{"display", "$share/venue", false},
		{"display", "$share", false},
		{"display", "$share/a/$share/b/venue", false},
		{"all", "#", true},
		{"all", "+/+", true},
		{"all", "/", true},
		{"all", "$SYS/#", false},
		{"all", "$SYS/broker/clients", false},
		{"all", "$share/g/$SYS/#", false},
		{"all", "$share/g/#", true},
		{"all", "sensors/#/x", false},
		{"all", "", false},
		{"all", "a\x00", false},
		{"monitor", "$SYS/#", true},
		{"monitor", "$SYS", true},
		{"monitor", "$SYS/+/x", true},
		{"monitor", "$share/g/$SYS/broker/#", true},
		{"monitor", "$OTHER/#", false},
		{"monitor", "$sys/#", false},
		{"monitor", "sensors", true},
		{"belt", "sensors/belt/#", true},
		{"belt", "sensors/belt", true},
		{"belt", "sensors/belt/cues", true},
		{"belt", "sensors/other/#", false},
		{"belt", "sensors/{sensor}/#", false},
		{"belt", "sensors/+/#", false},
		{"belt", "news", true},
		{"none", "news", true},
		{"none", "sensors/belt/#", false},
		{"coach", "sensors/coach/cues", true},
		{"coach", "x{sensor}", true},
		{"+", "news", false}, // no sensor has this name, whatever a client calls itself
		{"+", "sensors/belt/#", false},
		{"#", "sensors/belt", false},
		{"a/b", "sensors/a/b/#", false},
		{"", "news", false},
	} {
		if got := acl.MaySubscribe(test.sensor, test.filter); got != test.want {
			t.Errorf("sensor %q, filter %q: %v", test.sensor, test.filter, got)
		}
	}
	var zero ACL
	if zero.MaySubscribe("belt", "sensors/belt") || !zero.MayPublish("belt", "sensors/belt") {
		t.Error("the zero ACL is not the one without rules")
	}
}

func TestACL_PublishIsUnderItsOwnIDOnly(t *testing.T) {
	var acl ACL
	for _, test := range []struct {
		sensor, topic string
		want          bool
	}{
		{"belt", "sensors/belt", true},
		{"belt", "sensors/belt/heart_rate", true},
		{"belt", "sensors/belt/a/b", true},
		{"belt", "sensors/belt/", true},
		{"ü b", "sensors/ü b/x", true},
		{"belt", "sensors/belt2", false},
		{"belt2", "sensors/belt", false},
		{"belt", "sensors/BELT", false},
		{"belt", "sensors", false},
		{"belt", "sensors/", false},
		{"belt", "/sensors/belt", false},
		{"belt", "sensors//belt", false},
		{"belt", "sensor/belt", false},
		{"belt", "other/sensors/belt", false},
		{"belt", "sensors/+", false},
		{"belt", "sensors/belt/#", false},
		{"+", "sensors/+", false},
		{"#", "sensors/#", false},
		{"", "sensors/", false},
		{"", "sensors//x", false},
		{"belt", "sensors/belt\x00", false},
		{"belt", "$SYS/belt", false},
		{"belt", "$share/g/sensors/belt", false},
		{"belt", "sensors/belt/" + strings.Repeat("x", MaxFilterBytes), false},
	} {
		if got := acl.MayPublish(test.sensor, test.topic); got != test.want {
			t.Errorf("sensor %q, topic %q: %v", test.sensor, test.topic, got)
		}
	}
}

func TestACL_Receive(t *testing.T) {
	acl := newACL(t)
	for topic, want := range map[string]bool{
		"sensors/belt/heart_rate": true, "sensors/belt/power": false, "venue": true, "$SYS/x": false,
		"sensors/+/heart_rate": false, "sensors/display/x": true, "": false,
	} {
		if got := acl.MayReceive("display", topic); got != want {
			t.Errorf("%q: %v", topic, got)
		}
	}
}

func TestACL_PublishesAsOthersWhereItsRuleSaysSo(t *testing.T) {
	acl, err := NewACL([]Rule{
		{Sensor: "receiver", PublishAs: []string{"belt-*", "scale"}, Status: true},
		{Sensor: "all", PublishAs: []string{"*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		sensor, name string
		want         bool
	}{
		{"receiver", "receiver", true}, {"receiver", "belt-17", true}, {"receiver", "belt-", true}, {"receiver", "scale", true},
		{"receiver", "scale2", false}, {"receiver", "belt", false}, {"receiver", "xbelt-1", false}, {"receiver", "", false},
		{"belt-17", "belt-17", true}, {"belt-17", "belt-18", false}, {"belt-17", "receiver", false}, {"", "", false}, {"", "belt-17", false},
		{"all", "anything", true},
	} {
		if have := acl.MayPublishAs(c.sensor, c.name); have != c.want {
			t.Errorf("%q as %q: %v", c.sensor, c.name, have)
		}
	}
	if !acl.MayReadStatus("receiver") || acl.MayReadStatus("all") {
		t.Error("status is not read by whom the rule names")
	}
	_, err = NewACL([]Rule{{Sensor: AnySensor, PublishAs: []string{"x"}}, {Sensor: "a", PublishAs: []string{"b/c*", "", "**/"}}})
	for _, want := range []string{"all sensors can't", `"b/c*"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v: want %q in it", err, want)
		}
	}
}

func TestNewACL_NamesAllThatIsWrong(t *testing.T) {
	_, err := NewACL([]Rule{
		{Sensor: "a/b", Subscribe: nil}, {Sensor: "", Subscribe: nil}, {Sensor: "belt", Subscribe: []string{"a#"}}, {Sensor: "belt", Subscribe: nil}, {Sensor: "x", Subscribe: []string{"$share/g/a"}}, {Sensor: "y", Subscribe: []string{""}}, {Sensor: "many", Subscribe: make([]string, maxFilters+1)},
	})
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{"rule 1:", "rule 2:", "rule 3:", "rule 4:", "rule 5:", "rule 6:", "rule 7:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
}

func BenchmarkACL_MayReceive(b *testing.B) {
	acl := newACL(b)
	b.ReportAllocs()
	for b.Loop() {
		acl.MayReceive("monitor", "sensors/belt-17/heart_rate")
	}
}
