package credential

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"touchline"
)

const (
	// AnySensor in a rule stands for every sensor: + is in no sensor's name.
	AnySensor = "+"

	// ownLevel in a filter stands for the sensor that asks.
	ownLevel = "{sensor}"

	// Each delivery to a subscriber is compared with its sensor's filters and
	// those of AnySensor, 50 ns each.
	maxRules   = 10_000
	maxFilters = 64 // of one rule

	topicRoot = "sensors"
)

// A Rule is one table [[sensors.acl]] of the settings: what a sensor, or
// AnySensor, may do beside publishing under its own id. The level {sensor} in a
// filter is the sensor's own id, so {Sensor: "+", Subscribe:
// {"sensors/{sensor}/#"}} lets each hear itself.
type Rule struct {
	Sensor    string
	Subscribe []string
	PublishAs []string // ids, or beginnings of ids with * behind: for a receiver of many belts. Not for AnySensor
	Status    bool     // may read the gateway's status and metrics from elsewhere
}

// An ACL says which topics sensors may use. A sensor publishes under its own id,
// and under those that its rule gives it; it subscribes to what its rules and
// those of AnySensor give it, and to nothing where there are none. It is never changed
// after NewACL, so its methods may be called concurrently. The zero ACL has no
// rule.
type ACL struct {
	rules     map[string][]string // subscriptions
	publishAs map[string][]string
	status    map[string]bool
}

// NewACL checks the rules. Its error names all that is wrong, a line each.
func NewACL(rules []Rule) (*ACL, error) {
	var errs []error
	acl := &ACL{rules: map[string][]string{}, publishAs: map[string][]string{}, status: map[string]bool{}}
	if len(rules) > maxRules {
		return nil, fmt.Errorf("%d rules: at most %d are allowed", len(rules), maxRules)
	}
	for i, r := range rules {
		if err := checkRule(r); err != nil {
			errs = append(errs, fmt.Errorf("rule %d: %w", i+1, err))
		}
		if _, twice := acl.rules[r.Sensor]; twice {
			errs = append(errs, fmt.Errorf("rule %d: sensor %.80q has a rule already: put its filters into that", i+1, r.Sensor))
		}
		filters := make([]string, len(r.Subscribe))
		for j, f := range r.Subscribe {
			filters[j] = ownTopics(f, r.Sensor)
		}
		acl.rules[r.Sensor] = filters
		acl.publishAs[r.Sensor] = slices.Clone(r.PublishAs)
		acl.status[r.Sensor] = r.Status
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return acl, nil
}

func checkRule(r Rule) error {
	if r.Sensor != AnySensor {
		if err := touchline.CheckSensor(r.Sensor); err != nil {
			return fmt.Errorf("%w (%q stands for all sensors)", err, AnySensor)
		}
	}
	if len(r.Subscribe) > maxFilters {
		return fmt.Errorf("sensor %s: %d filters: at most %d are allowed", r.Sensor, len(r.Subscribe), maxFilters)
	}
	if len(r.PublishAs) > maxFilters {
		return fmt.Errorf("sensor %s: %d ids to publish as: at most %d are allowed", r.Sensor, len(r.PublishAs), maxFilters)
	}
	if r.Sensor == AnySensor && len(r.PublishAs) > 0 {
		return errors.New("all sensors can't publish as others: name the one that may")
	}
	for _, id := range r.PublishAs {
		if id == "*" {
			continue
		}
		if err := touchline.CheckSensor(strings.TrimSuffix(id, "*")); err != nil {
			return fmt.Errorf("sensor %s: publish as %.80q: %w (write an id, or the beginning of ids with * behind)", r.Sensor, id, err)
		}
	}
	for _, f := range r.Subscribe {
		if err := CheckFilter(f); err != nil {
			return fmt.Errorf("sensor %s: %w", r.Sensor, err)
		}
		if filter, err := splitShare(f); err != nil || filter != f {
			return fmt.Errorf("sensor %s: topic filter %q: give the filter behind $share/<group>/, shared subscriptions to it are allowed with it", r.Sensor, f)
		}
	}
	return nil
}

// ownTopics puts the sensor into the levels that stand for it.
func ownTopics(filter, sensor string) string {
	if sensor == AnySensor || !strings.Contains(filter, ownLevel) {
		return filter
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if level == ownLevel {
			levels[i] = sensor
		}
	}
	return strings.Join(levels, "/")
}

// MayPublish says whether topic is the sensor's own: sensors/<sensor> or below.
func (a *ACL) MayPublish(sensor, topic string) bool {
	if checkTopicText(topic) != nil || strings.ContainsAny(topic, "+#") {
		return false
	}
	root, rest, ok := strings.Cut(topic, "/")
	id, _, _ := strings.Cut(rest, "/")
	return ok && root == topicRoot && id == sensor && id != ""
}

// MayPublishAs says whether the sensor may publish under the id name: its own,
// or one that its rule gives it.
func (a *ACL) MayPublishAs(sensor, name string) bool {
	if sensor == name {
		return sensor != ""
	}
	return slices.ContainsFunc(a.publishAs[sensor], func(id string) bool {
		beginning, open := strings.CutSuffix(id, "*")
		return id == name || open && strings.HasPrefix(name, beginning)
	})
}

// MayReadStatus says whether the sensor may read the gateway's status.
func (a *ACL) MayReadStatus(sensor string) bool { return a.status[sensor] || a.status[AnySensor] }

// MaySubscribe says whether every topic that filter matches, or the filter
// inside $share/<group>/, is covered by one filter that the sensor has.
func (a *ACL) MaySubscribe(sensor, filter string) bool {
	inner, err := splitShare(filter)
	return err == nil && CheckFilter(filter) == nil && CheckFilter(inner) == nil && a.allows(sensor, inner)
}

// MayReceive says whether a message on topic may be delivered to the sensor.
// It allocates nothing where no rule has {sensor}.
func (a *ACL) MayReceive(sensor, topic string) bool {
	return checkTopicText(topic) == nil && !strings.ContainsAny(topic, "+#") && a.allows(sensor, topic)
}

// allows asks the sensor's rule and the one of all. A sensor can't be called
// +, but who asks might be.
func (a *ACL) allows(sensor, filter string) bool {
	if touchline.CheckSensor(sensor) != nil {
		return false
	}
	for _, f := range a.rules[sensor] {
		if covers(f, filter) {
			return true
		}
	}
	for _, f := range a.rules[AnySensor] {
		if covers(ownTopics(f, sensor), filter) {
			return true
		}
	}
	return false
}
