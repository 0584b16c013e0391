package sensors

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"touchline"
	"touchline/payload"
)

// post takes one body and answers 204 when it is durable.
func (h *HTTP) post(w http.ResponseWriter, r *http.Request) *problem {
	select {
	case h.posts <- struct{}{}:
		defer func() { <-h.posts }()
	default:
		h.intake.reject(CauseLimit)
		return unavailable("busy", "Too many requests at a time", fmt.Sprintf("%d are under way", h.opts.MaxRequests), time.Second)
	}
	if h.ctx.Err() != nil {
		return unavailable("closing", "The gateway is ending", "send it again later", retryFailed)
	}
	in := h.intake
	if err := h.origins.Check(r); err != nil {
		in.reject(CauseProtocol)
		return newProblem(http.StatusForbidden, "origin", "Pages from elsewhere may not write samples", err.Error())
	}
	g, p := h.enter(r)
	if p != nil {
		return p
	}
	pacePost(r.Context())
	now, clock := in.stamp()
	src, p := source(r, now)
	if p != nil {
		in.reject(CauseProtocol)
		return p
	}
	if p := h.ownSource(r, g, &src); p != nil {
		return p
	}
	f, p := format(r)
	if p != nil {
		in.reject(CauseMediaType)
		return p
	}
	name, err := idempotencyKey(r.Header)
	if err != nil {
		in.reject(CauseProtocol)
		return newProblem(http.StatusBadRequest, "idempotency-key", "Idempotency-Key can't be read", err.Error())
	}
	if r.ContentLength > smallBody || r.ContentLength < 0 {
		release, p := h.largeBody(r)
		if p != nil {
			return p
		}
		defer release()
	}
	body, p := h.readBody(w, r)
	if p != nil {
		return p
	}
	in.counters[TransportHTTP].messages.Add(1)
	load := &load{messages: 1, bytes: len(body), arrived: src.Now, clock: clock}
	if load.samples, err = decodeBody(f, src, body); err != nil {
		in.reject(CausePayload)
		return newProblem(http.StatusBadRequest, "payload", "Body can't be read", err.Error())
	}
	if name, found := g.foreign(load.samples, src.Sensor); found {
		return h.forbidden(r, g.notAllowed(name))
	}
	if name != "" {
		load.keys = []touchline.Key{{
			ID:    touchline.DigestOf("http", g.sender(), name),
			Body:  touchline.DigestOf([]byte(f.String()), []byte(src.Sensor), []byte(src.Metric), body),
			Count: len(load.samples), Again: true, Long: true,
		}}
	}
	if p := h.store(r, load); p != nil {
		return p
	}
	// Who sends and sends, and never reads, must not hold the connection.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(h.limits().Write))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// largeBody waits for a place among the large bodies, which bound the memory
// of all requests together.
func (h *HTTP) largeBody(r *http.Request) (release func(), p *problem) {
	if r.ContentLength > int64(h.opts.BodyBytes) {
		return nil, h.tooLarge() // not read, so it needs no place
	}
	timer := time.NewTimer(largeBodyWait)
	defer timer.Stop()
	select {
	case h.large <- struct{}{}:
		return func() { <-h.large }, nil
	case <-timer.C:
	case <-r.Context().Done():
	case <-h.ctx.Done():
	}
	h.intake.reject(CauseLimit)
	return nil, unavailable("busy", "Too many large bodies at a time", fmt.Sprintf("%d above %d bytes are under way", cap(h.large), smallBody), time.Second)
}

func (h *HTTP) tooLarge() *problem {
	h.intake.reject(CauseTooLarge)
	return newProblem(http.StatusRequestEntityTooLarge, "too-large", "Body is too large",
		fmt.Sprintf("at most %d bytes are taken: send smaller packs", h.opts.BodyBytes))
}

func (h *HTTP) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(h.limits().Receive)) // an error would be that of a test's writer
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(h.opts.BodyBytes)))
	var large *http.MaxBytesError
	switch {
	case err == nil:
		_ = control.SetReadDeadline(time.Time{}) // a wait for the store is not the client's silence
		return body, nil
	case errors.As(err, &large):
		return nil, h.tooLarge()
	}
	h.intake.reject(CauseProtocol)
	return nil, newProblem(http.StatusBadRequest, "body", "Body did not arrive whole", fmt.Sprintf("read body: %v", err))
}

// store waits for the commit. A client that leaves does not end the wait: its
// samples are the store's by then.
func (h *HTTP) store(r *http.Request, l *load) *problem {
	done := make(chan error, 1)
	err := h.intake.store.AppendAsync(r.Context(), touchline.Arrival{Samples: l.samples, Clock: l.clock, Keys: l.keys}, func(err error) { done <- err })
	committed := err == nil
	if committed {
		err = <-done
	}
	h.intake.account(TransportHTTP, &seenCache{}, l, err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, touchline.ErrKeyReused):
		return newProblem(http.StatusUnprocessableEntity, "idempotency-key", "Idempotency-Key was used for another body",
			"nothing is stored: a key stands for one request and its repeats; take a new one for each body")
	}
	switch wait := retryAfter(err); {
	case wait > 0 && !committed:
		return unavailable("full", "Buffer is full", "nothing is stored: send it again later", wait)
	case wait > 0:
		return unavailable("commit", "Commit failed", fmt.Sprintf("it is unknown whether the samples are stored: send them again: %v", err), wait)
	case !committed:
		return unavailable("not-stored", "Samples are not stored", fmt.Sprintf("nothing is stored: %v", err), retryFailed)
	}
	h.trouble.warn("samples of a request are not stored: the client was told to send them again", slog.String("remote", r.RemoteAddr), slog.Any("error", err))
	return unavailable("commit", "Commit failed", fmt.Sprintf("it is unknown whether the samples are stored: send them again: %v", err), retryFailed)
}

func unavailable(kind, title, detail string, after time.Duration) *problem {
	p := newProblem(http.StatusServiceUnavailable, kind, title, detail)
	p.retryAfter = after
	return p
}

// decodeBody reads a body whole.
func decodeBody(f payload.Format, src payload.Source, body []byte) ([]touchline.Sample, error) {
	decoder := decoders.Get().(*payload.Decoder)
	defer decoders.Put(decoder)
	if f == payload.Auto {
		return decodeJSON(decoder, src, body)
	}
	return decoder.Decode(nil, f, src, body)
}
