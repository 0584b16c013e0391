package sensors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
	"touchline/credential"
)

// AccessOptions are what NewAccess needs. Every field is required.
type AccessOptions struct {
	Keys      *credential.SensorKeys
	Rules     Rules
	PerSensor int // connections of one sensor at a time
	Limits    Limits
}

// Rules say who may come in without a key, and what those with one may do.
type Rules struct {
	ACL       *credential.ACL
	Anonymous bool // who shows no key, and none is known for the name, may come in
	Hold      bool // sensors that are unknown are listed for a person to admit them; not with Anonymous
}

func (r *Rules) check() error {
	switch {
	case r.ACL == nil:
		return errors.New("access: the ACL is not given")
	case r.Hold && r.Anonymous:
		return errors.New("access: nobody is held where anonymous sensors are let in")
	}
	return nil
}

// Access says who may come in, and what they may do: the same for every
// transport. A sensor that shows its key publishes under its own id, and under
// those that its rule gives it. Where anonymous ones are let in, they publish
// under any id but those that the file of keys names: whoever got a key has
// the name for itself from then on, whether the others have one yet or not.
//
// Access starts nothing. Run ends the connections of those whose key was
// revoked or changed; its other methods may be called concurrently.
type Access struct {
	opts       AccessOptions
	logger     *slog.Logger
	trouble    *limitedLog
	door       door
	turnedAway atomic.Uint64 // connections, by the door

	rules      atomic.Pointer[Rules]
	changes    atomic.Uint64 // of the rules
	generation atomic.Uint64 // epoch as Run saw it last

	mu     sync.Mutex // covers what is below
	guests map[*guest]func(error)
	count  map[string]int // of guests of a sensor
}

// NewAccess returns an Access.
func NewAccess(opts AccessOptions, logger *slog.Logger) (*Access, error) {
	switch {
	case opts.Keys == nil:
		return nil, errors.New("access: keys are not given")
	case opts.PerSensor < 1:
		return nil, fmt.Errorf("access: connections of a sensor are %d: at least 1 is needed", opts.PerSensor)
	}
	if l := opts.Limits; l.PerAddress < 1 || l.Handshakes < 1 || l.Messages < 1 || l.Bytes < 1 || min(l.Login, l.Receive, l.Write) <= 0 {
		return nil, fmt.Errorf("access: limits are %+v: at least 1 of each is needed", l)
	}
	a := &Access{
		opts: opts, logger: logger, trouble: newLimitedLog(logger), door: door{limits: opts.Limits, peers: map[netip.Addr]*peer{}},
		guests: map[*guest]func(error){}, count: map[string]int{},
	}
	if err := a.Change(opts.Rules); err != nil {
		return nil, err
	}
	return a, nil
}

// Change puts other rules in place. They hold for what is asked from then on,
// also by connections that are open; those that may not stay end as where a key
// is revoked.
func (a *Access) Change(rules Rules) error {
	if err := rules.check(); err != nil {
		return err
	}
	a.rules.Store(&rules)
	a.changes.Add(1)
	return nil
}

// epoch is another number whenever rules or keys have changed.
func (a *Access) epoch() uint64 { return a.changes.Load()<<32 + a.opts.Keys.Generation() }

// reviewInterval is how often connections that are open are looked at again:
// 4,000 guests take 1 ms.
const reviewInterval = time.Second

// Run closes connections of sensors that may not stay, within about two
// seconds of the change, until ctx is done.
func (a *Access) Run(ctx context.Context) error {
	ticker := time.NewTicker(reviewInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			a.review()
		}
	}
}

var (
	errRevoked = errors.New("the sensor's key was revoked or changed")
	errNoKey   = errors.New("sensors without a key may not stay: sensors.allow_anonymous is false now")
)

// review looks at the guests, where the file of keys or the rules have changed.
func (a *Access) review() {
	generation := a.epoch()
	if a.generation.Swap(generation) == generation {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for g, leave := range a.guests {
		if g.login.Sensor != "" && !a.opts.Keys.Admits(g.login) {
			leave(errRevoked)
		}
		if g.login.Sensor == "" && !a.rules.Load().Anonymous {
			leave(errNoKey)
		}
	}
}

// A refusal says why somebody is not let in: text to them, which tells
// strangers nothing about other sensors, and the rest to the log.
type refusal struct {
	held bool // a person can admit the sensor
	busy bool // too many connections: not now
	text string
	why  error
}

// enter lets in who shows a sensor's id and its key, or the key alone.
// Nothing is shown by an anonymous one. There is a guest or a refusal.
func (a *Access) enter(sensor, secret string) (*guest, *refusal) {
	var verdict credential.Verdict
	var login credential.Login
	switch {
	case sensor == "" && secret == "":
		if a.rules.Load().Anonymous {
			return a.anonymous(), nil
		}
		return nil, &refusal{text: "show the sensor's id and its key", why: errors.New("no key was shown")}
	case sensor == "":
		verdict, login = a.opts.Keys.CheckKey(secret)
	default:
		verdict, login = a.opts.Keys.Check(sensor, secret)
	}
	switch {
	case verdict == credential.LetIn:
		return &guest{access: a, login: login}, nil
	case verdict == credential.UnknownSensor && a.rules.Load().Anonymous:
		return a.anonymous(), nil // with a key or without: here nobody needs one
	case verdict == credential.UnknownSensor && a.rules.Load().Hold && sensor != "":
		return nil, a.hold(sensor, secret)
	case verdict == credential.IsHeld:
		return nil, held(sensor)
	}
	return nil, &refusal{text: "the sensor's id or its key is wrong", why: fmt.Errorf("sensor %.128q: %s", sensor, verdict)}
}

func (a *Access) anonymous() *guest { return &guest{access: a} }

// hold lists a sensor that is not known, so that a person can admit it.
func (a *Access) hold(sensor, secret string) *refusal {
	if err := a.opts.Keys.Hold(sensor, secret); err != nil {
		return &refusal{text: "the sensor's id or its key is wrong", why: err}
	}
	return held(sensor)
}

func held(sensor string) *refusal {
	return &refusal{
		held: true, text: "the sensor waits for a person to admit it",
		why: fmt.Errorf("sensor %.128q waits: `touchline sensor admit` lets it in", sensor),
	}
}

// stay notes the connection of a guest; leave, which must not block, is called
// where it has to end. It is refused where the sensor has too many.
func (a *Access) stay(g *guest, leave func(error)) *refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	sensor := g.login.Sensor
	if sensor != "" && a.count[sensor] >= a.opts.PerSensor {
		return &refusal{busy: true, text: "too many connections of this sensor are open", why: fmt.Errorf("sensor %q has %d connections already", sensor, a.opts.PerSensor)}
	}
	if sensor != "" && !a.opts.Keys.Admits(g.login) {
		return &refusal{text: "the sensor's id or its key is wrong", why: fmt.Errorf("sensor %q: %w", sensor, errRevoked)}
	}
	if sensor == "" && !a.rules.Load().Anonymous {
		return &refusal{text: "show the sensor's id and its key", why: errNoKey}
	}
	a.guests[g] = leave
	if sensor != "" {
		a.count[sensor]++
	}
	return nil
}

// gone forgets a connection. It may be called twice, and for one that was
// refused.
func (a *Access) gone(g *guest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.guests[g]; !known {
		return
	}
	delete(a.guests, g)
	if sensor := g.login.Sensor; sensor != "" {
		if a.count[sensor]--; a.count[sensor] == 0 {
			delete(a.count, sensor)
		}
	}
}

// MayReadStatus says whether a key, shown as by enter, is that of somebody
// who may read the gateway's status.
func (a *Access) mayReadStatus(g *guest) bool {
	return a.rules.Load().Anonymous || a.rules.Load().ACL.MayReadStatus(g.login.Sensor)
}

// A guest is who is at the other end of a connection or request. Its methods
// are for one goroutine at a time.
type guest struct {
	access *Access
	login  credential.Login // without sensor: anonymous

	generation uint64
	latest     string // a name that it may use in this generation
}

// mayPublish says whether the guest may publish under a sensor's id. The name
// is remembered.
func (g *guest) mayPublish(sensor string) bool {
	if generation := g.access.generation.Load(); generation != g.generation {
		g.generation, g.latest = generation, ""
	}
	if sensor == g.latest {
		return sensor != ""
	}
	if !g.allows(sensor) {
		return false
	}
	g.latest = sensor
	return true
}

func (g *guest) allows(sensor string) bool {
	if g.login.Sensor == "" {
		return !g.access.opts.Keys.Named(sensor)
	}
	return g.access.rules.Load().ACL.MayPublishAs(g.login.Sensor, sensor)
}

// foreign returns the first sensor of samples that the guest may not publish
// for, if any. own is one that it may. Samples of one payload share their
// names' memory, so comparing them costs next to nothing.
func (g *guest) foreign(samples []touchline.Sample, own string) (sensor string, found bool) {
	for i := range samples {
		if name := samples[i].Sensor; name != own {
			if !g.allows(name) {
				return name, true
			}
			own = name
		}
	}
	return "", false
}

// maySubscribe says whether the guest may ask for what filter matches. Those
// who are let in without a key may ask for all but the broker's own topics.
func (g *guest) maySubscribe(filter string) bool {
	if g.login.Sensor == "" {
		return !strings.HasPrefix(filter, "$")
	}
	return g.access.rules.Load().ACL.MaySubscribe(g.login.Sensor, filter)
}

// mayReceive says the same of one topic.
func (g *guest) mayReceive(topic string) bool {
	if g.login.Sensor == "" {
		return !strings.HasPrefix(topic, "$")
	}
	return g.access.rules.Load().ACL.MayReceive(g.login.Sensor, topic)
}

// notAllowed is what is said and logged of a name that is not the guest's.
func (g *guest) notAllowed(name string) error {
	if g.login.Sensor == "" {
		return fmt.Errorf("sensor %.128q has a key: show it to publish under this id", name)
	}
	return fmt.Errorf("sensor %q may not publish as %.128q: each publishes under its own id (publish_as in [[sensors.acl]] allows others)", g.login.Sensor, name)
}
