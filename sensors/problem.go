package sensors

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"
)

// problem is an error as HTTP clients get it (RFC 9457).
type problem struct {
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail"`
	Instance string `json:"instance,omitempty"`

	retryAfter time.Duration
	allow      string
	accept     string // encodings of a body
	challenge  bool   // ask for a key
}

// The types are names, not addresses: nothing is served under them.
func newProblem(status int, kind, title, detail string) *problem {
	return &problem{Type: "urn:touchline:problem:" + kind, Title: title, Status: status, Detail: detail}
}

// write answers. What is still to come of the request's body is thrown away by
// the server before it can go on with the next request: a peer that does not
// send it must not hold the connection for longer than lingerTime, and one that does not read for no longer than patience.
func (p *problem) write(w http.ResponseWriter, r *http.Request, patience time.Duration) {
	control, now := http.NewResponseController(w), time.Now()
	_ = control.SetReadDeadline(now.Add(lingerTime)) // the server sets its own for the next request
	_ = control.SetWriteDeadline(now.Add(patience))
	p.Instance = r.URL.Path
	body, err := json.Marshal(p)
	if err != nil {
		panic("BUG: a problem has only strings and numbers: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff") // the detail quotes what the client sent
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(wholeSeconds(p.retryAfter)))
	}
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	if p.accept != "" {
		h.Set("Accept-Encoding", p.accept)
	}
	if p.challenge {
		h.Add("WWW-Authenticate", `Basic realm="touchline", charset="UTF-8"`)
		h.Add("WWW-Authenticate", `Bearer realm="touchline"`)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // a client that is gone learns nothing
}

// wholeSeconds rounds up, since Retry-After knows seconds only and 0 would be
// no pause.
func wholeSeconds(d time.Duration) int { return max(1, int(math.Ceil(d.Seconds()))) }
