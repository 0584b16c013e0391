package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// loadOptions describe a load: sensors that publish at QoS 1.
type loadOptions struct {
	address     string
	connections int
	window      int     // messages in flight on each connection, at most maxLoadWindow
	rate        float64 // messages a second over all connections; 0 is flat out
}

const (
	// maxLoadWindow bounds the messages in flight on a connection, so that
	// a window (1,024 x 130 bytes) fits the socket's buffers: a connection
	// writes and reads in turn, and must not block in the first.
	maxLoadWindow = 1024
	// tick is how often a paced connection looks for what is due.
	tick = 10 * time.Millisecond
	// late is how far behind its schedule a message may be until it is
	// stamped with its schedule: waiting for a slow gateway counts.
	late = 50 * time.Millisecond
	// gatherTime is how long a connection with a full window waits before it
	// reads again. Some brokers acknowledge message by message; reading as
	// they come would cost this process more than it costs the broker, which
	// shares the machine with it. It adds to latencies where the window is
	// full, and those are a hundred times as long.
	gatherTime = 500 * time.Microsecond
	// samplesPerMessage counts the metrics of appendSample.
	samplesPerMessage = 5
)

// A load is running sensors. Its connections are made when it is started, and
// wait for publish.
type load struct {
	options  loadOptions
	sensors  []*sensor
	stopping atomic.Bool
	begin    chan struct{} // closed by publish
	ended    sync.WaitGroup

	// Latencies are kept of what is sent in this span, ns since 1970.
	fromNs, toNs atomic.Int64

	mu     sync.Mutex
	errs   []error
	closed bool
}

// sensor is one connection, used by one goroutine, which writes what is due,
// reads acknowledgements, and so on: no channel and no lock on the way.
type sensor struct {
	conn  net.Conn
	topic string
	sent  atomic.Int64
	acked atomic.Int64
	_     [64]byte // the next sensor's counters are on another cache line

	random  uint64
	body    body
	sentAt  [2 * maxLoadWindow]int64 // ns, by packet identifier
	latency histogram                // publish to acknowledgement, of what was sent in [fromNs, toNs)
	out, in []byte
}

// body is what a player measures, in thousandths but for the heart.
type body struct{ heart, x, y, speed, accel int64 }

// connectLoad makes all connections.
func connectLoad(ctx context.Context, o loadOptions) (*load, error) {
	l := &load{options: o, begin: make(chan struct{})}
	for i := range o.connections {
		name := fmt.Sprintf("bench-%05d", i)
		conn, err := dialMQTT(ctx, o.address, name, true)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("connect sensor %d of %d: %w", i+1, o.connections, err)
		}
		s := &sensor{
			conn: conn, topic: "sensors/" + name, random: uint64(i)*0x9e3779b97f4a7c15 + 1,
			body: body{heart: 120, x: 50_000, y: 30_000, speed: 3_000}, in: make([]byte, 0, 4<<10),
		}
		l.sensors = append(l.sensors, s)
		l.ended.Go(func() { l.fail(l.run(s, i)) })
	}
	return l, nil
}

// dialMQTT connects and waits for the CONNACK.
func dialMQTT(ctx context.Context, address, clientID string, clean bool) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = conn.Write(appendConnect(nil, clientID, clean)); err == nil {
		err = readConnack(conn)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, conn.SetDeadline(time.Time{})
}

func readConnack(conn net.Conn) error {
	var answer [4]byte // type, length, flags, return code: nothing follows before we speak
	for n := 0; n < len(answer); {
		k, err := conn.Read(answer[n:])
		if err != nil {
			return fmt.Errorf("read connack: %w", err)
		}
		n += k
	}
	if answer[0]>>4 != typeConnack || answer[3] != 0 {
		return fmt.Errorf("connection refused: answer % x", answer)
	}
	return nil
}

// measure sets the span of which latencies are kept.
func (l *load) measure(from, to time.Time) {
	l.fromNs.Store(from.UnixNano())
	l.toNs.Store(to.UnixNano())
}

// publish lets the sensors begin.
func (l *load) publish() { close(l.begin) }

// counts returns the messages sent and acknowledged so far.
func (l *load) counts() (sent, acked int64) {
	for _, s := range l.sensors {
		acked += s.acked.Load()
		sent += s.sent.Load()
	}
	return sent, acked
}

// finish stops sending, waits until all is acknowledged, at most for timeout,
// and closes the connections.
func (l *load) finish(timeout time.Duration) (latency *histogram, err error) {
	l.stopping.Store(true)
	done := make(chan struct{})
	go func() { l.ended.Wait(); close(done) }()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		sent, acked := l.counts()
		l.fail(fmt.Errorf("%d of %d messages were not acknowledged within %s", sent-acked, sent, timeout))
	}
	l.close()
	<-done
	latency = &histogram{}
	for _, s := range l.sensors {
		latency.merge(&s.latency)
	}
	return latency, errors.Join(l.errs...)
}

// close ends the connections; it may be called twice.
func (l *load) close() {
	l.stopping.Store(true)
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	if !first {
		return
	}
	select {
	case <-l.begin:
	default:
		close(l.begin)
	}
	for _, s := range l.sensors {
		s.conn.Close()
	}
	l.ended.Wait()
}

// fail keeps the first few errors of sensors.
func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && !l.closed && len(l.errs) < 3 {
		l.errs = append(l.errs, err)
	}
}

// run is the life of one sensor.
func (l *load) run(s *sensor, number int) error {
	<-l.begin
	var interval time.Duration
	began := time.Now()
	if l.options.rate > 0 {
		interval = time.Duration(float64(l.options.connections) / l.options.rate * float64(time.Second))
		began = began.Add(interval * time.Duration(number) / time.Duration(l.options.connections))
	}
	for {
		now := time.Now()
		sent := s.sent.Load()
		room := int64(l.options.window) - (sent - s.acked.Load())
		if l.stopping.Load() {
			if room == int64(l.options.window) {
				return nil
			}
			room = 0
		}
		full := interval == 0 // there is more to send than the window lets through
		if interval > 0 {
			due := int64(now.Sub(began)/interval) + 1
			if now.Before(began) {
				due = 0
			}
			room = min(room, due-sent)
			full = due-sent > room
			next := began.Add(time.Duration(sent+max(room, 0)) * interval)
			if err := s.conn.SetReadDeadline(later(next, now.Add(tick))); err != nil {
				return fmt.Errorf("%s: %w", s.topic, err)
			}
		}
		if full && room < int64(l.options.window)/2 {
			room = 0 // half a window leaves in one write
		}
		if err := s.write(int(room), now, began, interval); err != nil {
			return fmt.Errorf("%s: write: %w", s.topic, err)
		}
		if full && room == 0 {
			time.Sleep(gatherTime)
		}
		if err := s.read(l.fromNs.Load(), l.toNs.Load()); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%s: read: %w", s.topic, err)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// write publishes n messages in one piece.
func (s *sensor) write(n int, now, began time.Time, interval time.Duration) error {
	if n <= 0 {
		return nil
	}
	s.out = s.out[:0]
	sent := s.sent.Load()
	var payload [128]byte
	for i := range int64(n) {
		stamp := now.UnixNano() - (int64(n)-i)*1000 // one sensor measures one thing after the other
		if due := began.Add(time.Duration(sent+i) * interval); interval > 0 && now.Sub(due) > late {
			stamp = due.UnixNano()
		}
		id := uint16((sent+i)%0xffff) + 1
		s.sentAt[int(id)%len(s.sentAt)] = now.UnixNano()
		s.out = appendPublish(s.out, s.topic, id, s.appendSample(payload[:0], stamp))
	}
	s.sent.Add(int64(n)) // before the write: an acknowledgement can't be faster than that
	_, err := s.conn.Write(s.out)
	return err
}

// read takes the acknowledgements that one read brings, and keeps the
// latencies of what was sent in the span.
func (s *sensor) read(fromNs, toNs int64) error {
	if len(s.in) == cap(s.in) {
		return errors.New("more came than acknowledgements")
	}
	n, err := s.conn.Read(s.in[len(s.in):cap(s.in)])
	s.in = s.in[:len(s.in)+n]
	rest, acks := s.in, int64(0)
	nowNs := time.Now().UnixNano()
	for {
		kind, packet, after, cutErr := cutPacket(rest)
		if errors.Is(cutErr, errShort) {
			break
		}
		if cutErr != nil {
			return cutErr
		}
		rest = after
		if kind != typePuback {
			continue
		}
		id, idErr := packetID(packet)
		if idErr != nil {
			return idErr
		}
		acks++
		if at := s.sentAt[int(id)%len(s.sentAt)]; at >= fromNs && at < toNs {
			s.latency.add((nowNs - at) / 1000)
		}
	}
	s.in = s.in[:copy(s.in, rest)]
	s.acked.Add(acks)
	return err
}

// appendSample writes one JSON object of some 100 bytes. The values walk at
// random, with eight bits of noise in each but the heart rate, so that they
// compress no better than what a player measures does: recordings of real
// athletes have 1.4 to 5.4 bytes a sample in a block.
func (s *sensor) appendSample(b []byte, timeNs int64) []byte {
	s.random ^= s.random << 13 // xorshift, Marsaglia 2003
	s.random ^= s.random >> 7
	s.random ^= s.random << 17
	r, v := s.random, &s.body
	noise := func() int64 { // -128 … 127
		d := int64(int8(r))
		r >>= 8
		return d
	}
	v.x = between(0, v.x+noise(), 105_000)
	v.y = between(0, v.y+noise(), 68_000)
	v.speed = between(0, v.speed+noise(), 9_000)
	v.accel = between(-4_000, v.accel+noise(), 4_000)
	if n := noise(); n > 120 {
		v.heart = between(60, v.heart+n%2*2-1, 200)
	}
	b = strconv.AppendInt(append(b, timePrefix...), timeNs-int64(r&0x3ff), 10) // clocks are not even to the ns
	b = strconv.AppendInt(append(b, `,"heart_rate":`...), v.heart, 10)
	b = appendThousandths(append(b, `,"x":`...), v.x)
	b = appendThousandths(append(b, `,"y":`...), v.y)
	b = appendThousandths(append(b, `,"speed":`...), v.speed)
	b = appendThousandths(append(b, `,"acceleration":`...), v.accel)
	return append(b, '}')
}

func between(low, v, high int64) int64 { return min(max(v, low), high) }

// timePrefix begins each message; timeDigits of the time follow until 2286.
const (
	timePrefix = `{"t":`
	timeDigits = 19
)

// appendThousandths writes v/1000 with three digits behind the point.
func appendThousandths(b []byte, v int64) []byte {
	if v < 0 {
		b, v = append(b, '-'), -v
	}
	b = strconv.AppendInt(b, v/1000, 10)
	return append(b, '.', byte('0'+v/100%10), byte('0'+v/10%10), byte('0'+v%10))
}

// sampleTime reads the time back.
func sampleTime(payload []byte) (int64, error) {
	if len(payload) < len(timePrefix)+timeDigits || string(payload[:len(timePrefix)]) != timePrefix {
		return 0, fmt.Errorf("message %.40q is not of this bench", payload)
	}
	return strconv.ParseInt(string(payload[len(timePrefix):len(timePrefix)+timeDigits]), 10, 64)
}
