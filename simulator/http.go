package simulator

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
	"strings"
	"sync/atomic"
	"time"
)

// postTimeout bounds one POST. The gateway answers behind its commit, which a
// slow disk may hold up for seconds.
const postTimeout = 30 * time.Second

// httpLink is one keep-alive connection that POSTs to /v1/samples, one message
// at a time.
type httpLink struct {
	conn   net.Conn
	client *http.Client
	url    string
	kind   contentKind
	acked  chan uint64
	closed bool
}

// errUsedUp says that the link's one connection has ended between two POSTs.
var errUsedUp = fmt.Errorf("%w: http connection was closed", errNotSent)

// dialHTTP connects at once, so that a link is one connection as it is for the
// other transports; the transport below may not make another.
func dialHTTP(ctx context.Context, address, sensor string, kind contentKind) (link, error) {
	conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	var unused atomic.Pointer[net.Conn]
	unused.Store(&conn)
	transport := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if c := unused.Swap(nil); c != nil {
				return *c, nil
			}
			return nil, errUsedUp
		},
	}
	return &httpLink{
		conn: conn,
		client: &http.Client{
			Transport:     transport,
			Timeout:       postTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		url:   "http://" + address + "/v1/samples?sensor=" + url.QueryEscape(sensor),
		kind:  kind,
		acked: make(chan uint64, 1),
	}, nil
}

// Send posts one message and waits for the answer.
func (l *httpLink) Send(ctx context.Context, id uint64, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	req.Header.Set("Content-Type", l.kind.mediaType)
	resp, err := l.client.Do(req)
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return statusError(resp, "post")
	}
	// The body is read to its end, or the connection could not be used again.
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswerBytes)); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	l.acked <- id // has room: one POST at a time
	return nil
}

func (l *httpLink) Acked() <-chan uint64 { return l.acked }

func (l *httpLink) Err() error { return errors.New("http link closed") }

func (l *httpLink) Close() {
	if !l.closed {
		l.closed = true
		l.client.CloseIdleConnections()
		l.conn.Close() // if it was never used
		close(l.acked)
	}
}

// problemOf returns what the answer's body says, with a space before it: the
// detail or title of a JSON problem (RFC 9457), or its first words. It reads
// the body to its end.
func problemOf(resp *http.Response) string {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil || len(body) == 0 {
		return ""
	}
	var problem struct{ Title, Detail string }
	if json.Unmarshal(body, &problem) == nil && problem.Title+problem.Detail != "" {
		return " " + strings.TrimSpace(problem.Title+": "+problem.Detail)
	}
	return fmt.Sprintf(" %.200q", bytes.TrimSpace(body))
}
