package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"touchline"
	"touchline/internal/folder"
	"touchline/uplink"
)

func (d *Daemon) newUplink(settings touchline.Config, logger *slog.Logger) (_ *uplink.Uplink, err error) {
	c := &settings.Uplink
	if _, err := uplinkToken(settings, ""); err != nil { // now, where a person can see it
		return nil, err
	}
	opts := uplink.Defaults()
	opts.URLs = c.URLs
	opts.Gateway = settings.Gateway.ID
	opts.Software = "touchline/" + touchline.Version
	if c.TokenFile != "" {
		opts.Token = func() (string, error) { return firstLine(c.TokenFile) }
	} else {
		opts.Credential = func(ctx context.Context, nonce uplink.Nonce) (string, error) {
			return d.credential(ctx, settings, nonce)
		}
	}
	opts.AcceptTimeout = time.Duration(c.AcceptTimeout)
	opts.StoreTimeout = time.Duration(c.StoreTimeout)
	opts.BackoffBase = time.Duration(c.ReconnectMin)
	opts.BackoffCap = time.Duration(c.ReconnectMax)
	opts.ReturnAfter = time.Duration(c.ReturnAfter)
	if opts.Network, err = network(c); err != nil {
		return nil, err
	}
	if opts.Limits, err = d.limits(c); err != nil {
		return nil, err
	}
	if d.clock != nil { // nil: Check only asks what would be refused
		opts.Clock, opts.Corrections, opts.TLS = d.clock, d.buffer, d.clock.TLS
		opts.Epoch = d.buffer.Stats().Epoch
		dir := settings.Gateway.Data
		if opts.KnownStore, err = knownStore(dir); err != nil {
			return nil, err
		}
		opts.KeepStore = func(id string) error { return keepStore(dir, id) }
	}
	return uplink.New(opts, d.buffer, logger)
}

// network returns how the cloud is reached. No error shows a password.
func network(c *touchline.UplinkConfig) (uplink.Network, error) {
	n := uplink.Network{
		Proxy: c.Proxy, Interface: c.Interface, CAFile: c.CAFile, Pins: c.Pin, CertFile: c.ClientCert, KeyFile: c.ClientKey,
	}
	if c.ProxyPasswordFile == "" {
		return n, nil
	}
	line, err := firstLine(c.ProxyPasswordFile)
	if err != nil {
		return n, fmt.Errorf("uplink.proxy_password_file %s: %w", c.ProxyPasswordFile, err)
	}
	user, password, ok := strings.Cut(line, ":")
	u, err := url.Parse(c.Proxy)
	if !ok || err != nil {
		return n, fmt.Errorf("uplink.proxy_password_file %s: its first line is not USER:PASSWORD", c.ProxyPasswordFile)
	}
	u.User = url.UserPassword(user, password)
	n.Proxy = u.String()
	return n, nil
}

func (d *Daemon) limits(c *touchline.UplinkConfig) (uplink.Limits, error) {
	l := uplink.Limits{
		Plain: !c.LiveFirst, NewestFirst: c.BacklogOrder == "newest",
		MaxRate: c.MaxRate.Int(), BacklogShare: float64(c.BacklogShare) / 100,
	}
	hours, err := touchline.ParseHours(c.BacklogHours)
	if err != nil {
		return l, fmt.Errorf("uplink.backlog_hours: %w", err)
	}
	if hours != (touchline.Hours{}) && d.clock != nil {
		l.BacklogFrom = func(now time.Time) time.Time {
			if d.clock.State() == touchline.ClockUnset {
				return now // nobody knows what time it is, and data must not wait for that
			}
			local, _ := d.clock.Now()
			return now.Add(hours.Wait(local.Local()))
		}
	}
	return l, nil
}

// credential signs one handshake. A clock that is not synchronised says nothing
// about when, so the cloud's nonce does, and where its record store is not
// known yet it says for whom; where none is to be had it is signed without,
// unless the cloud asked for it.
func (d *Daemon) credential(ctx context.Context, c touchline.Config, nonce uplink.Nonce) (string, error) {
	said := ""
	store, err := knownStore(c.Gateway.Data)
	if err != nil {
		return "", err
	}
	if nonce.Wanted || store == "" || d.clock.State() != touchline.ClockSynchronised {
		if said, err = nonce.Fetch(ctx); err != nil && (nonce.Wanted || ctx.Err() != nil) {
			return "", err
		}
	}
	return mint(c, said)
}

// storeFile keeps, in the data folder, the id of the record store that this
// gateway delivers to: what the cloud calls stored means something there alone.
const storeFile = "cloud.store"

// maxStoreID bounds what is kept and shown.
const maxStoreID = 256

// knownStore reads it; "" where there is none.
func knownStore(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, storeFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read id of the record store: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxStoreID+2))
	if err != nil {
		return "", fmt.Errorf("read id of the record store: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if err := checkStoreID(id); err != nil {
		return "", fmt.Errorf("%s: %w: `touchline uplink accept-store ID` writes it anew", f.Name(), err)
	}
	return id, nil
}

func checkStoreID(id string) error {
	if id == "" || len(id) > maxStoreID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%.40q is no id of a record store", id)
	}
	return nil
}

// keepStore writes it, durable when it returns nil.
func keepStore(dir, id string) error {
	if err := checkStoreID(id); err != nil {
		return err
	}
	return folder.Replace(filepath.Join(dir, storeFile), []byte(id+"\n"), 0o644) // it is no secret
}

// acceptStore answers `touchline uplink accept-store`.
func (a *admin) acceptStore(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	var err error
	if id != "" {
		err = checkStoreID(id)
	}
	up := a.d.out.get().uplink
	if err == nil && up == nil {
		err = errors.New("uplink.urls is empty: this gateway delivers to no cloud")
	}
	if err == nil {
		id, err = up.AcceptStore(id)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"store": id})
}
