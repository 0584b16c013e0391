package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"touchline"
	"touchline/config"
	"touchline/systemd"
)

// reloadable are the settings that Reload applies, tables with a dot at their
// end. What shapes listeners, limits and the buffer holds for a whole life of
// the gateway: a restart takes a second, and no sensor is refused meanwhile.
var reloadable = []string{
	"sensors.allow_anonymous", "sensors.unknown", "sensors.acl", keyBroker, "buffer.import_keys", "uplink.", "log.level",
}

// Settings that name files with passwords.
const (
	keyBroker        = "sensors.broker"
	keyProxyPassword = "uplink.proxy_password_file" // #nosec G101 -- the name of a setting
)

func isReloadable(key string) bool {
	return slices.ContainsFunc(reloadable, func(r string) bool {
		return key == r || strings.HasSuffix(r, ".") && strings.HasPrefix(key, r)
	})
}

// ReloadStatus says what became of the last reload.
type ReloadStatus struct {
	Count   uint64    `json:"count"`             // of those that were applied
	At      time.Time `json:"at,omitzero"`       // of the last one
	Error   string    `json:"error,omitempty"`   // why it was not applied: the settings of before hold
	Changed []string  `json:"changed,omitempty"` // settings that it applied
	Restart []string  `json:"restart,omitempty"` // settings that differ in the file, and need a restart
}

// reloads is what Reload keeps.
type reloads struct {
	one    sync.Mutex       // one at a time: it reads files, and a disk may take its time; covers config
	config touchline.Config // what holds

	mu     sync.Mutex // covers status, which the watchdog's loop asks for
	status ReloadStatus
}

func (r *reloads) get() ReloadStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Reload takes up the settings that load returns, as far as a running gateway
// can, and returns those that hold then: no listener is closed and no sensor's
// connection ended, but of those who may not come in any more. Certificates are
// read again whenever they change, reload or not. Where the settings are wrong,
// the ones of before hold, all of them. What needs a restart is named in the
// log, by Status and to the service manager.
func (d *Daemon) Reload(load func() (touchline.Config, error)) (touchline.Config, error) {
	_ = systemd.Notify(systemd.Reloading())
	c, err := d.reload(load)
	_ = systemd.Notify(systemd.Ready, systemd.Status("%s", d.line())) // who waits for the end of the reload waits for this
	return c, err
}

func (d *Daemon) reload(load func() (touchline.Config, error)) (touchline.Config, error) {
	r := &d.reloads
	r.one.Lock()
	defer r.one.Unlock()
	wanted, err := load()
	if err == nil {
		err = Check(wanted)
	}
	var changed, restart []string
	if err == nil {
		changed, restart, err = d.apply(wanted)
	}
	r.note(changed, restart, err)
	if err != nil {
		d.logger.Error("settings are not reloaded: those of before hold", "error", err)
		return r.config, err
	}
	d.logger.Info("settings are reloaded", "changed", changed)
	if len(restart) > 0 {
		d.logger.Warn("some settings differ and need a restart: `touchline restart`", "settings", restart)
	}
	return r.config, nil
}

// note keeps what became of a reload.
func (r *reloads) note(changed, restart []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.At = time.Now()
	if err != nil {
		r.status.Error = err.Error()
		return
	}
	r.status.Count++
	r.status.Error, r.status.Changed, r.status.Restart = "", changed, restart
}

// apply changes what can be changed, and returns what was, and what needs a
// restart. d.reloads.one is held.
func (d *Daemon) apply(wanted touchline.Config) (changed, restart []string, err error) {
	r := &d.reloads
	holds := r.config
	holds.Uplink, holds.Buffer.ImportKeys, holds.Log.Level = wanted.Uplink, wanted.Buffer.ImportKeys, wanted.Log.Level
	holds.Sensors.Broker, holds.Sensors.ACL = wanted.Sensors.Broker, wanted.Sensors.ACL
	holds.Sensors.AllowAnonymous, holds.Sensors.Unknown = wanted.Sensors.AllowAnonymous, wanted.Sensors.Unknown
	for _, key := range config.Changed(r.config, wanted) {
		if isReloadable(key) {
			changed = append(changed, key)
		} else {
			restart = append(restart, key)
		}
	}
	// The addresses stay those of now: what the file asks for beside them was
	// checked with its own.
	var problems []error
	holds.Check(func(key, problem string) { problems = append(problems, fmt.Errorf("%s: %s", key, problem)) })
	if len(problems) > 0 {
		return nil, nil, fmt.Errorf("with the listeners as they are until a restart: %w", errors.Join(problems...))
	}
	// All that may fail comes before anything is changed.
	rules, err := accessRules(holds)
	if err != nil {
		return nil, nil, err
	}
	in, err := d.newInbound(holds, d.root)
	if err != nil {
		return nil, nil, err
	}
	out, err := d.newOutbound(holds, d.root)
	if err != nil {
		return nil, nil, err
	}
	// Passwords are not in the settings: the files that these name may have others.
	if !slices.Contains(changed, keyBroker) && !slices.Equal(in.passwords, d.in.get().passwords) {
		changed = append(changed, keyBroker)
	}
	if !slices.Contains(changed, keyProxyPassword) && out.proxy != d.out.get().proxy {
		changed = append(changed, keyProxyPassword)
	}
	has := func(prefix string) bool {
		return slices.ContainsFunc(changed, func(key string) bool { return strings.HasPrefix(key, prefix) })
	}
	if has("sensors.") {
		if err := d.access.Change(rules); err != nil {
			return nil, nil, err
		}
	}
	if has(keyBroker) {
		d.in.put(in)
	}
	if has("uplink.") || has("buffer.import_keys") {
		d.out.put(out)
	}
	r.config = holds
	return changed, restart, nil
}
