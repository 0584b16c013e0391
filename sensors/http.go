package sensors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/payload"
)

// The paths that HTTP serves.
const (
	SamplesPath = "/v1/samples"
	StreamPath  = "/v1/samples/stream"
)

// HTTPOptions are what NewHTTP needs. Every field is required.
type HTTPOptions struct {
	BodyBytes    int           // largest body of a POST
	MessageBytes int           // largest message of a stream
	MaxRequests  int           // POSTs at a time
	MaxStreams   int           // WebSockets at a time
	Window       int           // messages of one stream that are not yet acknowledged
	PingInterval time.Duration // of streams; a peer silent for two of them is gone
}

func (o *HTTPOptions) validate() error {
	var errs []error
	for _, f := range []struct {
		name  string
		value int
	}{
		{"body bytes", o.BodyBytes}, {"message bytes", o.MessageBytes}, {"max requests", o.MaxRequests},
		{"max streams", o.MaxStreams}, {"window", o.Window},
	} {
		if f.value < 1 {
			errs = append(errs, fmt.Errorf("%s are %d: at least 1 is needed", f.name, f.value))
		}
	}
	if o.PingInterval < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("ping interval is %s: at least 10ms is needed", o.PingInterval))
	}
	return errors.Join(errs...)
}

// Limits that are no settings.
const (
	// Bodies up to smallBody need no place among the large ones, of which there
	// are as many at a time as largeBodies hold, but at least one: their samples
	// take 2 to 6 bytes a byte, so 8 of 1 MiB are 48 MiB, and one of 16 MiB is 96.
	smallBody     = 16 << 10
	largeBodies   = 8 << 20
	largeBodyWait = 5 * time.Second // for such a place
	retryFailed   = time.Second     // Retry-After where a commit failed
)

// HTTP takes samples by POST /v1/samples and by WebSocket at
// /v1/samples/stream. It is an http.Handler for these two paths and leaves the
// server, with its timeouts for headers and idle connections, to its owner.
//
// A POST is stored whole or not at all, and 204 follows the commit. A 503 asks
// to send it again; where the commit failed the detail says that it is unknown
// whether the samples are stored. stream.go has the WebSocket's rules.
type HTTP struct {
	opts     HTTPOptions
	intake   *Intake
	logger   *slog.Logger
	trouble  *limitedLog
	upgrader websocket.Upgrader
	origins  *http.CrossOriginProtection // a page from elsewhere must not write samples through its visitor
	posts    chan struct{}               // a place for each POST under way
	large    chan struct{}               // a place for each large body
	batches  pool[reply]

	ctx  context.Context // done with Close
	stop context.CancelFunc

	mu      sync.Mutex // covers what is below
	closed  bool
	streams map[*stream]struct{}
	wg      sync.WaitGroup // one for each in streams; Add only while not closed
}

// NewHTTP returns a handler. Close ends it: http.Server.Shutdown does not know
// of WebSockets.
func NewHTTP(opts HTTPOptions, intake *Intake, logger *slog.Logger) (*HTTP, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("http options: %w", err)
	}
	h := &HTTP{
		opts: opts, intake: intake, logger: logger, trouble: newLimitedLog(logger),
		origins: http.NewCrossOriginProtection(),
		posts:   make(chan struct{}, opts.MaxRequests), large: make(chan struct{}, max(1, largeBodies/opts.BodyBytes)),
		streams: make(map[*stream]struct{}),
	}
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.upgrader = websocket.Upgrader{
		HandshakeTimeout: h.limits().Write,
		ReadBufferSize:   1 << 10, // with a pool for writing, an idle stream costs some 6 KB
		WriteBufferSize:  1 << 10,
		WriteBufferPool:  &sync.Pool{},
		// CheckOrigin is gorilla's: no Origin header, or that of this host.
		Error: func(w http.ResponseWriter, r *http.Request, status int, reason error) {
			h.intake.reject(CauseProtocol)
			p := newProblem(status, "handshake", "WebSocket handshake refused", reason.Error())
			if status == http.StatusMethodNotAllowed {
				p.allow = http.MethodGet
			}
			p.write(w, r, h.limits().Write)
		},
	}
	return h, nil
}

// ServeHTTP serves SamplesPath and StreamPath. Who sends is asked before
// anything of the body is read.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var p *problem
	switch {
	case r.URL.Path == SamplesPath && r.Method == http.MethodPost:
		p = h.post(w, r)
	case r.URL.Path == StreamPath && r.Method == http.MethodGet:
		p = h.upgrade(w, r)
	case r.URL.Path == SamplesPath:
		p = notAllowed(r, http.MethodPost)
	case r.URL.Path == StreamPath:
		p = notAllowed(r, http.MethodGet)
	default:
		p = newProblem(http.StatusNotFound, "not-found", "No such path", "samples are taken by POST "+SamplesPath+" and by WebSocket at "+StreamPath)
	}
	if p != nil {
		p.write(w, r, h.limits().Write)
	}
}

func (h *HTTP) limits() Limits { return h.intake.access.opts.Limits }

func notAllowed(r *http.Request, allow string) *problem {
	p := newProblem(http.StatusMethodNotAllowed, "method", "Method not allowed", fmt.Sprintf("%.20s is not allowed here: use %s", r.Method, allow))
	p.allow = allow
	return p
}

// Close ends all streams and waits for their goroutines, which wait for the
// store's answers: the store must be closed after. It may be called twice.
// POSTs are the server's to wait for; those that come after Close get a 503.
func (h *HTTP) Close() error {
	h.mu.Lock()
	h.closed = true
	for s := range h.streams {
		s.shutDown()
	}
	h.mu.Unlock()
	h.stop()
	h.wg.Wait()
	return nil
}

// source reads ?sensor= and ?metric=.
func source(r *http.Request, now int64) (payload.Source, *problem) {
	q := r.URL.Query()
	src := payload.Source{Sensor: q.Get("sensor"), Metric: q.Get("metric"), Now: now}
	var err error
	if q.Has("sensor") {
		err = touchline.CheckSensor(src.Sensor)
	}
	if err == nil && q.Has("metric") {
		err = touchline.CheckMetric(src.Metric)
	}
	if err != nil {
		return src, newProblem(http.StatusBadRequest, "name", "Bad name in the query", err.Error())
	}
	return src, nil
}

// mediaTypes are the content types that a POST may have.
var mediaTypes = map[string]payload.Format{
	"application/senml+json": payload.SenMLJSON,
	"application/senml+cbor": payload.SenMLCBOR,
	"application/json":       payload.Auto, // narrowed by the first byte
	"text/plain":             payload.Bare,
}

// format reads Content-Type. Parameters such as a charset change nothing: all
// of these are UTF-8 or binary by definition. Nothing compressed is taken: the
// limit of a body is that of its samples.
func format(r *http.Request) (payload.Format, *problem) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		p := newProblem(http.StatusUnsupportedMediaType, "encoding", "Compressed bodies are not read here", fmt.Sprintf("content encoding %.40q: send it as it is", coding))
		p.accept = "identity"
		return 0, p
	}
	given := r.Header.Get("Content-Type")
	name, _, _ := strings.Cut(given, ";")
	f, ok := mediaTypes[strings.ToLower(strings.TrimSpace(name))]
	if !ok {
		return f, newProblem(http.StatusUnsupportedMediaType, "media-type", "Content type is not read here",
			fmt.Sprintf("content type %.80q: use application/senml+json, application/senml+cbor, application/json, or text/plain for one bare value", given))
	}
	return f, nil
}
