package daemon

import (
	"log/slog"
	"net/http"

	"touchline"
	"touchline/clock"
	"touchline/uplink"
)

// route returns how this gateway reaches the cloud, for whatever is no session
// of the uplink. Certificates are judged by watch: a gateway that boots without
// a clock has to get through to whoever tells it the time.
func route(c touchline.Config, watch *clock.Watch) (*uplink.Route, error) {
	n, err := network(&c.Uplink)
	if err != nil {
		return nil, err
	}
	return uplink.NewRoute(n, watch.TLS)
}

// client is that of the daemon's route, nil where c names no cloud.
func (d *Daemon) client(c touchline.Config) (*http.Client, error) {
	if len(c.Uplink.URLs) == 0 {
		return nil, nil
	}
	r, err := route(c, d.clock)
	if err != nil {
		return nil, err
	}
	return r.Client(), nil
}

// Route returns how the gateway of this folder reaches the cloud, with the
// settings of [uplink]. No error shows a password.
func (f *Folder) Route() (*uplink.Route, error) {
	watch, err := clock.Open(f.config.Gateway.Data, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return route(f.config, watch)
}
