package sensors

import (
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"touchline"
	"touchline/internal/here"
	"touchline/payload"
)

// retryBusy is when a sensor with too many connections may try again.
const retryBusy = 10 * time.Second

// enter lets in who sends a request: Basic with the sensor's id and key, or
// the key alone as bearer.
func (h *HTTP) enter(r *http.Request) (*guest, *problem) {
	sensor, secret, ok := shown(r)
	if !ok {
		return nil, h.refuse(r, &refusal{text: "Authorization can't be read: use Basic with the sensor's id and key, or Bearer with the key"})
	}
	access := h.intake.access
	if asked := r.URL.Query().Get("sensor"); sensor == "" && secret == "" && access.rules.Load().Hold && touchline.CheckSensor(asked) == nil {
		sensor = asked // so that a person sees who waits, and can give it a key
	}
	g, no := access.enter(sensor, secret)
	if no != nil {
		return nil, h.refuse(r, no)
	}
	return g, nil
}

// shown reads what the request shows, which may be nothing.
func shown(r *http.Request) (sensor, secret string, ok bool) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", "", true
	}
	if len(values) > 1 {
		return "", "", false
	}
	if sensor, secret, ok := r.BasicAuth(); ok {
		return sensor, secret, sensor != ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	return "", token, strings.EqualFold(scheme, "Bearer") && token != ""
}

// refuse answers who is not let in. The log has what strangers are not told.
func (h *HTTP) refuse(r *http.Request, no *refusal) *problem {
	h.intake.reject(CauseAccess)
	if no.why != nil {
		h.trouble.warn("http request refused", slog.String("remote", r.RemoteAddr), slog.Any("error", no.why))
	}
	switch {
	case no.busy:
		p := newProblem(http.StatusTooManyRequests, "busy", "Too many connections", no.text)
		p.retryAfter = retryBusy
		return p
	case no.held:
		return newProblem(http.StatusForbidden, "held", "The sensor is not admitted yet", no.text)
	}
	p := newProblem(http.StatusUnauthorized, "key", "No key, or a wrong one", no.text)
	p.challenge = true
	return p
}

// forbidden answers a guest who may not publish under a name.
func (h *HTTP) forbidden(r *http.Request, err error) *problem {
	h.intake.reject(CauseAccess)
	h.trouble.warn("http request refused", slog.String("remote", r.RemoteAddr), slog.Any("error", err))
	return newProblem(http.StatusForbidden, "sensor", "Not this sensor's id", err.Error())
}

// ownSource gives payloads that name no sensor the id of the one that has
// shown its key, and refuses a name in the query that is not the guest's.
func (h *HTTP) ownSource(r *http.Request, g *guest, src *payload.Source) *problem {
	if src.Sensor == "" {
		src.Sensor = g.login.Sensor
		return nil
	}
	if !g.mayPublish(src.Sensor) {
		return h.forbidden(r, g.notAllowed(src.Sensor))
	}
	return nil
}

// ForStatus hands on requests of who may read the gateway's status: on the
// gateway itself, everybody; from elsewhere, everybody where anonymous sensors
// are let in, and else a sensor whose rule says so.
func (h *HTTP) ForStatus(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !fromHere(r) {
			g, p := h.enter(r)
			if p == nil && !h.intake.access.mayReadStatus(g) {
				p = h.refuse(r, &refusal{text: "this key does not allow to read the status (status = true in [[sensors.acl]] does)"})
			}
			if p != nil {
				p.write(w, r, h.limits().Write)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// fromHere says whether a request comes from this machine, was not handed on by
// a proxy on it, and names no host but this one: the page of another site whose
// name leads here (DNS rebinding) could read the answer in its visitor's browser.
func fromHere(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() &&
		!here.Forwarded(r) && here.Names(r.Host) && r.Header.Get("Sec-Fetch-Site") != "cross-site"
}
