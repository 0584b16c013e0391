package sensors

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline"
)

// A restlessClock is set anew with every third message. A stamp says which
// clock it is of: it is three times its offset and no more than two above it.
type restlessClock struct {
	mu    sync.Mutex
	n     int64
	clock *touchline.Clock
}

func (c *restlessClock) now() (time.Time, *touchline.Clock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n%3 == 0 {
		c.clock = &touchline.Clock{Offset: c.n / 3}
	}
	c.n++
	return time.Unix(0, c.n-1), c.clock
}

// A clockStore checks each arrival against its clock.
type clockStore struct {
	*memStore
	t *testing.T
}

func (s clockStore) AppendAsync(ctx context.Context, a touchline.Arrival, done func(error)) error {
	for _, sample := range a.Samples {
		if !sample.Stamped || a.Clock == nil || sample.Time/3 != a.Clock.Offset {
			s.t.Errorf("%+v came with the clock %+v", sample, a.Clock)
		}
	}
	return s.memStore.AppendAsync(ctx, a, done)
}

// However messages are gathered on their way to the store, those of one
// arrival were stamped by the clock that it names.
func TestIntake_StampsOfAnArrivalAreOfItsClock(t *testing.T) {
	const messages = 1000
	store := clockStore{newStore(t), t}
	clock := &restlessClock{}
	in, err := NewIntake(IntakeOptions{Store: store, Now: clock.now, MaxSensors: 10, Access: openAccess(t)})
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)

	m := startMQTT(t, in, nil, quiet)
	client := dialMQTT(t, m.Addr(), 5, "belt")
	var packets []byte
	for i := range messages {
		packets = append(packets, publishPacket(5, 1, uint16(i+1), "sensors/belt/hr", []string{"142", "{", `{"a":1,"b":2}`}[i%3])...)
	}
	client.send(t, packets) // at once, so that they are read together
	for i := range messages {
		client.expectAck(t, 4, uint16(i+1))
	}

	server := startHTTP(t, in, nil, quiet)
	conn := dialStream(t, server.URL, "?sensor=vest&metric=hr", nil)
	for range messages / 10 {
		sendText(t, conn, "1")
	}
	expectAcked(t, conn, messages/10)
	for i := range 10 {
		body := strings.Repeat(fmt.Sprintf(`{"n":"vest/x","t":0,"v":%d},`, i), 5)
		response, problem := post(t, server.URL+SamplesPath, "application/senml+json", "["+strings.TrimSuffix(body, ",")+"]")
		if response.StatusCode != http.StatusNoContent {
			t.Fatal(problem)
		}
	}
	if n := len(store.stored()); n < messages+messages/10+50 {
		t.Errorf("%d samples were looked at", n)
	}
}
