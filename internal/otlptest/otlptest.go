// Package otlptest is an OpenTelemetry collector as far as tests need one: it
// takes traces over OTLP/HTTP in protobuf, and keeps them. It listens on loopback
// and ends with its test.
package otlptest

import (
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// A Span is one span as it was received.
type Span struct {
	*trace.Span
	Service, Node string
}

// Label returns a text or a number of the span; nil where it has no such label.
func (s Span) Label(key string) any {
	for _, kv := range s.Attributes {
		if kv.Key == key {
			if s := kv.Value.GetStringValue(); s != "" {
				return s
			}
			return kv.Value.GetIntValue()
		}
	}
	return nil
}

// A Receiver is a collector. Its methods may be called concurrently.
type Receiver struct {
	t    testing.TB
	addr string

	mu     sync.Mutex // covers what follows
	server *http.Server
	ended  chan struct{}
	spans  []Span
	bad    int
}

// New returns a Receiver that listens.
func New(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{t: t, addr: "127.0.0.1:0"}
	r.Start()
	t.Cleanup(r.Stop)
	return r
}

// Endpoint is where traces are to be sent, also while it does not listen.
func (r *Receiver) Endpoint() string { return "http://" + r.addr + "/v1/traces" }

// Start has it listen again, at the same address.
func (r *Receiver) Start() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = l.Addr().String()
	server, ended := &http.Server{Handler: http.HandlerFunc(r.take), ReadHeaderTimeout: time.Minute}, make(chan struct{})
	r.mu.Lock()
	r.server, r.ended = server, ended
	r.mu.Unlock()
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
}

// Stop closes all that is open; it may be called twice.
func (r *Receiver) Stop() {
	r.mu.Lock()
	server, ended := r.server, r.ended
	r.mu.Unlock()
	_ = server.Close()
	<-ended
}

// Spans returns what was received, by name where one is given.
func (r *Receiver) Spans(name ...string) []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.spans), func(s Span) bool { return len(name) > 0 && !slices.Contains(name, s.Name) })
}

// Bad returns how many requests were none of OTLP.
func (r *Receiver) Bad() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bad
}

func (r *Receiver) take(w http.ResponseWriter, req *http.Request) {
	var message collector.ExportTraceServiceRequest
	body, err := io.Reader(req.Body), error(nil)
	if req.Header.Get("Content-Encoding") == "gzip" {
		body, err = gzip.NewReader(req.Body)
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(body)
	}
	if err == nil {
		err = proto.Unmarshal(data, &message)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || req.Method != http.MethodPost || req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" {
		r.bad++
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, of := range message.ResourceSpans {
		var s Span
		for _, kv := range of.Resource.GetAttributes() {
			switch kv.Key {
			case "service.name":
				s.Service = kv.Value.GetStringValue()
			case "service.instance.id":
				s.Node = kv.Value.GetStringValue()
			}
		}
		for _, scope := range of.ScopeSpans {
			for _, span := range scope.Spans {
				s.Span = span
				r.spans = append(r.spans, s)
			}
		}
	}
	answer, err := proto.Marshal(&collector.ExportTraceServiceResponse{})
	if err != nil {
		panic("BUG: an empty message can't be marshalled: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(answer)
}
