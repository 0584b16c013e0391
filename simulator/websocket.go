package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// maxAnswerBytes bounds an answer of the gateway: {"acked":n}, or an error
// with a sentence for people.
const maxAnswerBytes = 64 << 10

// wsLink is one WebSocket at /v1/samples/stream. The gateway answers
// {"acked":n} with the number of messages it has handled so far, and
// {"error":{…}} about a message that it can't read, or, with "retry_after_s",
// when it is full or a commit failed: then what is not acknowledged is to be
// sent again on another connection.
type wsLink struct {
	conn   *websocket.Conn
	acked  chan uint64
	unbind func() bool // lets go of the context

	mu   sync.Mutex
	sent []uint64 // ids of messages not acknowledged, in order; at most maxWindow
	err  error    // why the link ended
}

func dialWebSocket(ctx context.Context, address, sensor string) (link, error) {
	dialer := websocket.Dialer{
		HandshakeTimeout: connectTimeout,
		WriteBufferSize:  64 << 10, // a message leaves in one frame
	}
	to := "ws://" + address + "/v1/samples/stream?sensor=" + url.QueryEscape(sensor)
	conn, resp, err := dialer.DialContext(ctx, to, nil)
	if err != nil {
		return nil, wsDialError(resp, err)
	}
	conn.SetReadLimit(maxAnswerBytes)
	l := &wsLink{conn: conn, acked: make(chan uint64, maxWindow)}
	l.unbind = context.AfterFunc(ctx, func() { l.fail(context.Cause(ctx)) })
	go l.read()
	return l, nil
}

func wsDialError(resp *http.Response, err error) error {
	if resp == nil || !errors.Is(err, websocket.ErrBadHandshake) {
		return fmt.Errorf("connect: %w", err)
	}
	return statusError(resp, "upgrade")
}

// Send writes one text message. It blocks while the peer does not read; the
// end of the context that the link was dialled with frees it.
func (l *wsLink) Send(_ context.Context, id uint64, body []byte) error {
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return fmt.Errorf("write message: %w: %w", errNotSent, l.err)
	}
	l.sent = append(l.sent, id) // before the write: its answer may be faster
	l.mu.Unlock()
	if err := l.conn.WriteMessage(websocket.TextMessage, body); err != nil {
		l.fail(err)
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

func (l *wsLink) Acked() <-chan uint64 { return l.acked }

func (l *wsLink) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Errorf("websocket: %w", l.err)
}

// Close says that the connection ends, and ends it.
func (l *wsLink) Close() {
	l.unbind()
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = l.conn.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second))
	l.fail(net.ErrClosed)
}

// fail ends the connection; the first cause stays.
func (l *wsLink) fail(cause error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = cause
	}
	l.mu.Unlock()
	l.conn.Close()
}

// read takes the answers until the connection ends.
func (l *wsLink) read() {
	defer close(l.acked)
	var handled uint64
	for {
		_, data, err := l.conn.ReadMessage()
		if err != nil {
			l.fail(err)
			return
		}
		var answer struct {
			Acked *uint64         `json:"acked"`
			Error json.RawMessage `json:"error"`
			Retry float64         `json:"retry_after_s"`
		}
		if err := json.Unmarshal(data, &answer); err != nil {
			l.fail(fmt.Errorf("answer %.100q is not JSON: %w", data, err))
			return
		}
		switch {
		case answer.Error != nil && answer.Retry > 0:
			l.fail(&retryAfterError{after: seconds(answer.Retry), reason: fmt.Sprintf("gateway says %.1000s", answer.Error)})
			return
		case answer.Error != nil:
			l.fail(refused("sent over a websocket: %.1000s", answer.Error))
			return
		}
		if answer.Acked == nil {
			continue // something newer than this client
		}
		if err := l.handled(handled, *answer.Acked); err != nil {
			l.fail(err)
			return
		}
		handled = *answer.Acked
	}
}

// handled acknowledges messages up to number upTo, of which before were.
func (l *wsLink) handled(before, upTo uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if upTo < before || upTo-before > uint64(len(l.sent)) {
		return fmt.Errorf("answer acknowledges %d messages: %d were sent, %d acknowledged before", upTo, before+uint64(len(l.sent)), before)
	}
	n := int(upTo - before)
	for _, id := range l.sent[:n] {
		l.acked <- id // has room for a whole window
	}
	l.sent = append(l.sent[:0], l.sent[n:]...)
	return nil
}

// statusError makes the error of an HTTP answer that is no success: one to
// wait for, one that ends the run, or one that may pass.
func statusError(resp *http.Response, doing string) error {
	reason := fmt.Sprintf("%s: status %s%s", doing, resp.Status, problemOf(resp))
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusTooManyRequests:
		after, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 32)
		if err != nil { // absent, or the form with a date
			after = 1
		}
		return &retryAfterError{after: seconds(float64(after)), reason: reason}
	case resp.StatusCode >= 300 && resp.StatusCode < 500 && resp.StatusCode != http.StatusRequestTimeout:
		return refused("%s", reason)
	}
	return errors.New(reason)
}

// seconds are not more than maxBackoff.
func seconds(s float64) time.Duration {
	return time.Duration(min(s, maxBackoff.Seconds()) * float64(time.Second))
}
