package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"github.com/gorilla/websocket"
)

// streamLink is one WebSocket: messages are numbered from 1 in each, and
// acknowledged up to a number.
type streamLink struct {
	conn *websocket.Conn

	mu     sync.Mutex // covers writing and flying
	flying []int      // messages sent and not answered, in order
	done   uint64     // answered
}

func dialStream(ctx context.Context, port int, sensor string) (link, error) {
	address := fmt.Sprintf("ws://127.0.0.1:%d/v1/samples/stream?sensor=%s", port, url.QueryEscape(sensor))
	conn, resp, err := websocket.DefaultDialer.DialContext(ctx, address, nil)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return &streamLink{conn: conn}, nil
}

func (l *streamLink) send(message int, body []byte, _ bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying = append(l.flying, message)
	return l.conn.WriteMessage(websocket.TextMessage, body)
}

func (l *streamLink) answers() ([]answer, error) {
	_, text, err := l.conn.ReadMessage()
	if err != nil {
		return nil, err
	}
	var said struct {
		Acked uint64
		Error *struct {
			Message uint64
			Detail  string
		}
		RetryAfter int `json:"retry_after_s"`
	}
	if err := json.Unmarshal(text, &said); err != nil {
		return nil, fmt.Errorf("stream said %q: %w", text, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := said.Error; e != nil {
		// All from this message on is for the next connection.
		if i := int(e.Message - l.done - 1); i >= 0 && i < len(l.flying) {
			return []answer{{message: l.flying[i], refusal: "ws"}}, errors.New(e.Detail)
		}
		return nil, errors.New(e.Detail)
	}
	n := int(said.Acked - l.done)
	if said.Acked < l.done || n > len(l.flying) {
		return nil, fmt.Errorf("stream acknowledged %d after %d, %d are in flight", said.Acked, l.done, len(l.flying))
	}
	var list []answer
	for _, m := range l.flying[:n] {
		list = append(list, answer{message: m})
	}
	l.flying, l.done = l.flying[n:], said.Acked
	return list, nil
}

func (l *streamLink) close() { l.conn.Close() }

// poster sends each message as a POST of its own, window of them at a time.
type poster struct {
	ctx    context.Context
	cancel context.CancelFunc
	url    string
	name   string // of the client, for its Idempotency-Keys; or ""
	http   *http.Client
	came   chan posted
	flying sync.WaitGroup

	mu   sync.Mutex // covers over
	over bool       // no request is begun any more
}

type posted struct {
	answer answer
	err    error
}

func newPoster(ctx context.Context, port int, c *client) *poster {
	p := &poster{
		url:  fmt.Sprintf("http://127.0.0.1:%d/v1/samples?sensor=%s", port, url.QueryEscape(c.sensor)),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: c.window}},
		came: make(chan posted, 2*c.window),
	}
	if c.named {
		p.name = c.sensor
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

func (p *poster) send(message int, body []byte, _ bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return net.ErrClosed
	}
	p.flying.Go(func() { p.came <- p.post(message, body) })
	return nil
}

func (p *poster) post(message int, body []byte) posted {
	// net/http sends a request again by itself where it has GetBody: the
	// ledger must know of each sending.
	req, err := http.NewRequestWithContext(p.ctx, http.MethodPost, p.url, io.NopCloser(bytes.NewReader(body)))
	if err != nil {
		return posted{err: err}
	}
	req.ContentLength = int64(len(body))
	req.Header.Set("Content-Type", "application/json")
	if p.name != "" {
		req.Header.Set("Idempotency-Key", fmt.Sprintf(`"%s-%d"`, p.name, message))
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return posted{err: err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return posted{err: err}
	case resp.StatusCode == http.StatusNoContent:
		return posted{answer: answer{message: message}}
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
		return posted{answer: answer{message: message, refusal: "http 503"}}
	}
	return posted{answer: answer{message: message, refusal: fmt.Sprintf("http %d: %s", resp.StatusCode, text)}}
}

// answers gives up the connection with the first request that failed: the
// others' answers are still heard, by close.
func (p *poster) answers() ([]answer, error) {
	select {
	case got := <-p.came:
		if got.err != nil {
			return p.rest(), got.err
		}
		return []answer{got.answer}, nil
	case <-p.ctx.Done():
		return p.rest(), p.ctx.Err()
	}
}

// rest waits for the requests under way, which it ends, and returns what they
// were answered before.
func (p *poster) rest() []answer {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.cancel()
	p.flying.Wait() // came has room for all of them
	var list []answer
	for {
		select {
		case got := <-p.came:
			if got.err == nil {
				list = append(list, got.answer)
			}
		default:
			return list
		}
	}
}

func (p *poster) close() {
	p.cancel()
	p.http.CloseIdleConnections()
}
