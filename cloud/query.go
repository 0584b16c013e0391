package cloud

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"touchline"
)

// reader answers GET /v1/samples. An answer is streamed, needs memory that does
// not grow with it, and is either complete or visibly cut off.
type reader struct {
	archive Archive
	timeout time.Duration // of each piece of an answer
	stats   *counters
	log     *slog.Logger
	slots   chan struct{} // one element for each query that runs
}

func (q *reader) serveSamples(w http.ResponseWriter, r *http.Request) {
	if !r.ProtoAtLeast(1, 1) {
		// The end of an HTTP/1.0 answer is the end of the connection, so one cut
		// off in the middle would look complete.
		problem(w, http.StatusHTTPVersionNotSupported, "samples are sent over HTTP/1.1 only, where an answer that was cut off can be told from a complete one; set your proxy or client to it")
		return
	}
	query, format, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	select {
	case q.slots <- struct{}{}:
		defer func() { <-q.slots }()
	default:
		q.stats.queriesRefused.Add(1)
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, fmt.Sprintf("%d queries run, and no more than that may at a time; try again", cap(q.slots)))
		return
	}
	q.stats.queriesRunning.Add(1)
	defer q.stats.queriesRunning.Add(-1)

	w.Header().Set("Content-Type", format.contentType)
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return
	}
	a := &answer{w: w, control: http.NewResponseController(w), format: format, timeout: q.timeout, flushed: time.Now()}
	a.buf = append(make([]byte, 0, chunkBytes+chunkBytes/8), format.begin...)
	err = q.archive.Samples(r.Context(), query, a.add)
	if err == nil {
		err = a.finish()
	}
	q.stats.rowsQueried.Add(a.rows)
	if err == nil {
		q.stats.queries.Add(1)
		return
	}
	q.stats.queriesBroken.Add(1)
	q.broken(a, r, err)
}

// broken ends an answer that is not complete: with a problem where nothing was
// sent yet, else by breaking the connection before the last chunk.
func (q *reader) broken(a *answer, r *http.Request, err error) {
	var form *formError
	switch {
	case errors.As(err, &form) && !a.started:
		problem(a.w, http.StatusUnprocessableEntity, form.Error())
		return
	case r.Context().Err() != nil || errors.As(err, new(*readerError)):
		q.log.Debug("a reader went away", "query", r.URL.RawQuery, "remote", r.RemoteAddr, "rows", a.rows, "error", err)
	default:
		q.log.Error("answer query", "query", r.URL.RawQuery, "remote", r.RemoteAddr, "rows", a.rows, "error", err)
		if !a.started {
			problem(a.w, http.StatusInternalServerError, "the samples can't be read; the log of touchline-cloud says why")
			return
		}
	}
	panic(http.ErrAbortHandler)
}

const (
	chunkBytes = 32 << 10    // about 500 rows of CSV
	chunkDelay = time.Second // how long a row may wait for others
)

// An answer is the body of one query, on its way.
type answer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	format  *format
	timeout time.Duration
	buf     []byte
	row     Record // the last; here, since a local one would be allocated for each row
	rows    uint64
	started bool // something was sent
	flushed time.Time
}

// A readerError says that the reader does not take its answer.
type readerError struct{ err error }

func (e *readerError) Error() string { return "send answer: " + e.err.Error() }
func (e *readerError) Unwrap() error { return e.err }

func (a *answer) add(r Record) error {
	if a.rows > 0 {
		a.buf = append(a.buf, a.format.between...)
	}
	a.row = r
	var err error
	if a.buf, err = a.format.appendRow(a.buf, &a.row); err != nil {
		return err
	}
	a.rows++
	if len(a.buf) < chunkBytes && time.Since(a.flushed) < chunkDelay {
		return nil
	}
	return a.flush()
}

func (a *answer) finish() error {
	a.buf = append(a.buf, a.format.end...)
	return a.flush()
}

// flush sends what is there. Each chunk has a deadline of its own: a reader may
// take hours over a large answer, but not stand still.
func (a *answer) flush() error {
	a.started = true
	if err := a.control.SetWriteDeadline(time.Now().Add(a.timeout)); err != nil {
		return &readerError{err}
	}
	if _, err := a.w.Write(a.buf); err != nil {
		return &readerError{err}
	}
	if err := a.control.Flush(); err != nil {
		return &readerError{err}
	}
	a.buf = a.buf[:0]
	a.flushed = time.Now()
	return a.control.SetWriteDeadline(time.Time{}) // the archive may take its time
}

// parseQuery reads the parameters of GET /v1/samples. One that is unknown,
// twice there or bad is an error that says so to a person; one that is empty
// is left out.
func parseQuery(raw string) (Query, *format, error) {
	q, form := Query{}, formats["csv"]
	values, err := url.ParseQuery(raw)
	if err != nil {
		return q, nil, fmt.Errorf("query: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		list := values[name]
		if !slices.Contains(parameters, name) {
			return q, nil, fmt.Errorf("parameter %.40q is unknown: there are %s", name, strings.Join(parameters, ", "))
		}
		if len(list) > 1 {
			return q, nil, fmt.Errorf("parameter %s is there %d times: give it once", name, len(list))
		}
		if list[0] == "" {
			continue
		}
		if err := setParameter(&q, &form, name, list[0]); err != nil {
			return q, nil, fmt.Errorf("parameter %s: %w", name, err)
		}
	}
	if q.From != nil && q.To != nil && *q.From > *q.To {
		return q, nil, fmt.Errorf("parameter from is after parameter to")
	}
	if q.Replaced && form.replaced != nil {
		form = form.replaced
	}
	return q, form, nil
}

var parameters = []string{"gateway", "sensor", "metric", "from", "to", "format", "replaced"}

func setParameter(q *Query, form **format, name, value string) (err error) {
	switch name {
	case "gateway":
		q.Gateway, err = value, touchline.CheckGateway(value)
	case "sensor":
		q.Sensor, err = value, touchline.CheckSensor(value)
	case "metric":
		q.Metric, err = value, touchline.CheckMetric(value)
	case "from":
		q.From, err = parseTime(value)
	case "to":
		q.To, err = parseTime(value)
	case "format":
		if *form = formats[value]; *form == nil {
			err = fmt.Errorf("%.40q is unknown: there are csv, json and senml", value)
		}
	case "replaced":
		if q.Replaced = value == "true"; !q.Replaced && value != "false" {
			err = fmt.Errorf("%.40q is neither true nor false", value)
		}
	}
	return err
}

// ParseTime reads RFC 3339, or integer nanoseconds since the Unix epoch.
func ParseTime(s string) (int64, error) {
	ns, err := parseTime(s)
	if err != nil {
		return 0, err
	}
	return *ns, nil
}

// parseTime reads RFC 3339, or integer nanoseconds since the Unix epoch.
func parseTime(s string) (*int64, error) {
	if ns, err := strconv.ParseInt(s, 10, 64); err == nil {
		return &ns, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		hint := ""
		if strings.Contains(s, " ") {
			hint = " (in a URL the sign + must be written %2B)"
		}
		return nil, fmt.Errorf("%.60q is neither RFC 3339, such as 2026-05-30T15:04:05Z, nor an integer of nanoseconds since 1970%s", s, hint)
	}
	if t.Before(time.Unix(0, -1<<63)) || t.After(time.Unix(0, 1<<63-1)) {
		return nil, fmt.Errorf("%s lies outside the years 1678 to 2262, which nanoseconds reach", s)
	}
	ns := t.UnixNano()
	return &ns, nil
}
