// Package preflight looks, before a match, for what would keep a gateway from
// doing its work: its folder and disk, the clock, each step of the way to the
// cloud, and the listeners. It changes nothing, sends no sample, and opens no
// session, so it may run beside the gateway. Run returns when all is looked at.
package preflight

import (
	"context"
	"fmt"
	"time"

	"touchline/uplink"
)

// Options say what to look at. A nil field is explained with it; the others
// are required.
type Options struct {
	Dir         string // the data folder
	FreeReserve int64  // bytes that the buffer leaves free

	URLs     []string // of the cloud, ws or wss; none: the gateway just buffers
	Gateway  string
	Software string
	Token    func(nonce string) (string, error)              // what a handshake carries; nonce is the cloud's, or empty
	Route    func() (*uplink.Route, error)                   // how the uplink goes there
	Lookup   func(context.Context, string) ([]string, error) // of host names; nil: the system's

	Running   bool // the gateway runs, so its listeners must answer; else their ports must be free
	Listeners []Listener
}

// A Listener is where sensors connect.
type Listener struct {
	Setting string // "sensors.mqtt.listen"
	Address string
	HTTP    bool // else MQTT
	TLS     bool
}

// A Status is how a check ended.
type Status string

// The statuses. Only Fail makes the whole fail.
const (
	OK   Status = "ok"
	Warn Status = "warn" // works, and may not for long
	Fail Status = "fail"
	Skip Status = "skip" // could not be looked at
)

// A Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`       // what was found
	Do     string `json:"do,omitempty"` // what to do about it
}

// A Report is all of them.
type Report struct {
	OK     bool      `json:"ok"`
	Time   time.Time `json:"time"`
	Checks []Check   `json:"checks"`
}

// Failed returns how many checks failed.
func (r *Report) Failed() (n int) {
	for _, c := range r.Checks {
		if c.Status == Fail {
			n++
		}
	}
	return n
}

// stepTimeout bounds each step that waits for somebody else. The slowest of
// them, a handshake over a satellite line through a proxy, takes 3 s.
const stepTimeout = 10 * time.Second

// Run looks at everything. What depends on a step that failed is skipped.
func Run(ctx context.Context, o Options) Report {
	r := &Report{Time: time.Now()}
	r.folder(&o)
	r.clock()
	if len(o.URLs) == 0 {
		r.add("cloud", Skip, "uplink.urls is empty: this gateway just buffers", "")
	}
	r.clouds(ctx, &o)
	for _, l := range o.Listeners {
		r.listener(ctx, l, o.Running)
	}
	r.OK = r.Failed() == 0
	return *r
}

func (r *Report) add(name string, status Status, detail, do string) {
	r.Checks = append(r.Checks, Check{Name: name, Status: status, Detail: detail, Do: do})
}

func (r *Report) ok(name, format string, args ...any) {
	r.add(name, OK, fmt.Sprintf(format, args...), "")
}

func (r *Report) fail(name string, err error, do string) { r.add(name, Fail, err.Error(), do) }
