package sensors

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"touchline"
	"touchline/payload"
)

// mqttConn is a connection to the embedded broker: the socket, seen by mochi
// as a net.Conn, and the messages on their way.
//
// mochi reads packets in series from a buffer, and asks the socket for more
// only when the buffer is used up. That is the moment at which everything the
// buffer held goes to the store as one batch: a batch costs the sensor no
// waiting, since nothing more of it is here.
type mqttConn struct {
	net.Conn
	m       *MQTT
	guarded *guardedConn  // the one in net.Conn, or nil
	done    chan struct{} // closed when mochi is through with the connection

	// Set as the session begins, before the first message.
	client  *mqtt.Client
	session *session
	version byte             // 4 is MQTT 3.1.1
	name    touchline.Digest // of the client id
	named   bool             // packet ids may name messages: the session outlives the connection
	resumed bool             // the client goes on with an earlier session: DUP may mean a message of it
	capped  bool             // the session ends sooner than the client wants

	// Of the goroutine that reads.
	deadline       time.Time // mochi's, from the keepalive
	packetDeadline time.Time // of a packet that has begun, or zero
	frames         frames
	placed         bool // a large packet has its place
	pending        *batch[answer]
	decoder        *payload.Decoder // while pending is
	routes         map[string]route
	latest         route
	replies        []byte // PUBCOMPs

	claim  claim // to its client id
	flow   flow[answer]
	seen   seenCache // of the goroutine that answers
	failed bool      // of the same: a commit failed, nothing after it is acknowledged
	closed atomic.Pointer[closing]
	guest  atomic.Pointer[guest] // who it is; nil before CONNECT. Its names are for the goroutine that reads

	mu       sync.Mutex // covers shutting, and the read deadline with it
	shutting bool
}

// closing says why this side ended a connection.
type closing struct {
	cause Cause
	err   error
}

// route is what a topic means.
type route struct{ topic, sensor, metric string }

// maxRoutes bounds the topics that a connection remembers: 32 of at most 267
// bytes are 8 KiB.
const maxRoutes = 32

func newMQTTConn(m *MQTT, conn net.Conn) *mqttConn {
	c := &mqttConn{Conn: conn, m: m, guarded: guarded(conn), done: make(chan struct{}), claim: claim{lost: make(chan struct{})}, deadline: time.Now().Add(m.connectTimeout)}
	c.flow.init(m.intake.store, m.opts.Window, maxInflightBytes, func() { go c.answer() })
	return c
}

// Read sends what has been read so far on its way, then waits for more.
func (c *mqttConn) Read(p []byte) (int, error) {
	if c.pending != nil {
		began := time.Now()
		c.flush()
		c.postpone(time.Since(began)) // a wait for the store is not the sensor's silence
	}
	c.sendReplies()
	if c.frames.whole() {
		c.freePlace()
	}
	c.mu.Lock()
	if c.shutting {
		c.mu.Unlock()
		return 0, c.goodbye()
	}
	err := c.Conn.SetReadDeadline(c.readDeadline())
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if err != nil && c.m.ctx.Err() != nil {
		return 0, c.goodbye()
	}
	if err == nil {
		err = c.follow(p[:n])
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Write gives a peer that does not read limited time. After an error the
// stream may have half a packet in it, so the connection ends.
func (c *mqttConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.m.intake.access.opts.Limits.Write)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Conn.Close()
	}
	return n, err
}

// SetDeadline is what mochi calls for each packet; it counts from the next
// Read on. Writes have a deadline of their own.
func (c *mqttConn) SetDeadline(t time.Time) error {
	c.deadline = t
	return nil
}

// shutDown ends the connection with the gateway. The goroutine that reads is
// woken and says good-bye.
func (c *mqttConn) shutDown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shutting = true
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0)) // an error would be that it is closed
}

func (c *mqttConn) goodbye() error {
	if c.version == 5 {
		_ = c.m.server.DisconnectClient(c.client, packets.ErrServerShuttingDown)
	}
	_ = c.Conn.Close()
	return net.ErrClosed
}

// close ends the connection for a reason, which the end of the connection
// logs. It may be called by any goroutine, and again.
func (c *mqttConn) close(cause Cause, err error) {
	c.closed.CompareAndSwap(nil, &closing{cause, err})
	_ = c.Conn.Close()
}

// publish takes a message. An error ends the connection, and c.closed has it
// already.
func (c *mqttConn) publish(pk *packets.Packet) error {
	if alias := pk.Properties.TopicAlias; alias > 0 {
		// The topic's bytes are those of a whole packet: only the topic stays.
		pk.TopicName = c.client.State.TopicAliases.Inbound.Set(alias, strings.Clone(pk.TopicName))
		if pk.TopicName == "" {
			return c.violate(CauseProtocol, packets.ErrTopicAliasInvalid, fmt.Errorf("topic alias %d was never set", alias))
		}
	}
	if n := len(pk.Payload); n > c.m.opts.PayloadBytes {
		return c.violate(CauseTooLarge, packets.ErrPacketTooLarge,
			fmt.Errorf("payload of topic %.80q has %d bytes: at most %d are allowed", pk.TopicName, n, c.m.opts.PayloadBytes))
	}
	c.keepPace()
	c.makeRoom(len(pk.Payload))
	now, clock := c.m.intake.stamp()
	if c.pending != nil && c.pending.clock != clock {
		c.flush() // it was set anew: a batch has one clock
	}
	b := c.batch()
	b.clock = clock
	r, err := c.route(pk.TopicName)
	if err != nil {
		b.count(len(pk.Payload), now)
		return c.turnAway(b, pk, CauseTopic, packets.ErrTopicNameInvalid, err)
	}
	g := c.guest.Load()
	if !g.mayPublish(r.sensor) {
		b.count(len(pk.Payload), now)
		return c.turnAway(b, pk, CauseAccess, packets.ErrNotAuthorized, g.notAllowed(r.sensor))
	}
	a := answer{kind: ackOf(pk.FixedHeader.Qos), id: pk.PacketID}
	if a.kind == pubrec {
		a.content = contentOf(r.topic, pk.Payload)
		switch c.session.begin(a.id, a.content) {
		case receivedID: // a repetition: it is stored, so only the answer is due
			b.answers = append(b.answers, answer{kind: pubrecAgain, id: a.id})
			b.count(0, 0)
			return nil
		case pendingID: // its commit will answer on this connection
			return nil
		}
	}
	first := len(b.samples)
	c.read(b, r, arrived{pk, now})
	if name, found := g.foreign(b.samples[first:], r.sensor); found {
		clear(b.samples[first:])
		b.samples = b.samples[:first]
		if a.kind == pubrec {
			c.session.withdraw(a.id)
		}
		return c.turnAway(b, pk, CauseAccess, packets.ErrNotAuthorized, g.notAllowed(name))
	}
	a.live = c.live(pk)
	if a.kind != noAck || a.live != nil {
		b.answers = append(b.answers, a)
	}
	if dup := pk.FixedHeader.Dup; c.named && a.kind != noAck && c.session.names(a.id, dup) && b.needsKey(first) {
		key := publishKey(c.name, a.id, r.topic, pk.Payload)
		key.Again = dup && c.resumed
		b.addKey(key, first)
	}
	return nil
}

// keepPace counts a message, and waits where there are too many in a second.
func (c *mqttConn) keepPace() {
	if c.guarded == nil {
		return
	}
	if wait := c.guarded.messages.take(1); wait > 0 {
		c.flush()
		c.guarded.wait(wait)
		c.postpone(wait)
	}
}

// turnAway answers a message that is not taken. Whoever can't be told that is
// disconnected.
func (c *mqttConn) turnAway(b *batch[answer], pk *packets.Packet, cause Cause, code packets.Code, err error) error {
	if c.version != 5 || pk.FixedHeader.Qos == 0 {
		return c.violate(cause, code, err)
	}
	c.m.intake.reject(cause)
	c.m.trouble.warn("mqtt message refused", c.attrs(slog.Any("error", err))...)
	b.answers = append(b.answers, answer{kind: ackOf(pk.FixedHeader.Qos), id: pk.PacketID, reason: code.Code})
	return nil
}

// An arrived packet, and when it did, in ns since the Unix epoch.
type arrived struct {
	*packets.Packet
	at int64
}

// read decodes a message into b. An empty retained message is the command to
// forget the retained one (MQTT 5, section 3.3.1.3), and no sample.
func (c *mqttConn) read(b *batch[answer], r route, pk arrived) {
	b.count(len(pk.Payload), pk.at)
	if len(pk.Payload) == 0 && pk.FixedHeader.Retain {
		return
	}
	src := payload.Source{Sensor: r.sensor, Metric: r.metric, Now: pk.at}
	if err := b.decode(c.decoder, payload.Auto, src, pk.Payload); err != nil {
		b.samples = append(b.samples, payload.Raw(src, pk.Payload))
		b.raw++
		c.m.trouble.warn("mqtt payload can't be read: it is kept whole as "+touchline.MetricRaw,
			c.attrs(slog.String("topic", r.topic), slog.Any("error", err))...)
	}
}

// route returns what a topic means. A sensor publishes to few topics, so they
// are remembered, and its samples share the names' memory.
func (c *mqttConn) route(topic string) (route, error) {
	if topic == c.latest.topic {
		return c.latest, nil
	}
	r, ok := c.routes[topic]
	if !ok {
		topic = strings.Clone(topic) // its bytes are those of a whole packet
		sensor, metric, err := parseTopic(topic)
		if err != nil {
			return route{}, err
		}
		r = route{topic, sensor, metric}
		if c.routes == nil || len(c.routes) >= maxRoutes {
			c.routes = make(map[string]route)
		}
		c.routes[topic] = r
	}
	c.latest = r
	return r, nil
}

// batch returns the one that is being filled.
func (c *mqttConn) batch() *batch[answer] {
	if c.pending == nil {
		c.pending = c.m.batches.get(&c.flow)
		c.decoder = decoders.Get().(*payload.Decoder)
	}
	return c.pending
}

// makeRoom waits until a message with n bytes may come in.
func (c *mqttConn) makeRoom(n int) {
	messages := 1
	if b := c.pending; b != nil {
		messages, n = messages+b.messages, n+b.bytes
	}
	if c.flow.crowded(messages, n) {
		c.flush()
		c.flow.admit()
	}
}

// flush hands over what has been read.
func (c *mqttConn) flush() {
	c.sendReplies()
	b := c.pending
	if b == nil {
		return
	}
	c.pending = nil
	decoders.Put(c.decoder)
	c.decoder = nil
	c.m.intake.counters[TransportMQTT].messages.Add(uint64(b.messages))
	c.flow.push(b)
	err := c.flow.submit(c.m.ctx, b)
	if err == nil {
		return
	}
	// A sensor on MQTT 5 can be told that the store is full. One on 3.1.1, or
	// with QoS 0, can't: it is not read from for a while.
	if c.version != 5 || !tellable(b) {
		err = c.wait(b, err)
		if err == nil {
			return
		}
	}
	c.flow.settle(b, err)
}

// tellable says whether anything in b is answered.
func tellable(b *batch[answer]) bool {
	return slices.ContainsFunc(b.answers, func(a answer) bool { return a.kind != noAck })
}

// wait submits again while the store is full and patience lasts.
func (c *mqttConn) wait(b *batch[answer], err error) error {
	patience := time.NewTimer(c.m.opts.Patience)
	defer patience.Stop()
	for err != nil && retryAfter(err) > 0 {
		again := time.NewTimer(retryAfter(err))
		select {
		case <-again.C:
			err = c.flow.submit(c.m.ctx, b)
		case <-patience.C:
			again.Stop()
			return err
		case <-c.m.ctx.Done():
			again.Stop()
			return err
		}
	}
	return err
}

// release answers a PUBREL.
func (c *mqttConn) release(id uint16) error {
	reason := packets.CodeSuccess.Code
	switch c.session.end(id) {
	case pendingID:
		return c.violate(CauseProtocol, packets.ErrProtocolViolation, fmt.Errorf("PUBREL for packet id %d before its PUBREC", id))
	case unknownID:
		reason = packets.ErrPacketIdentifierNotFound.Code
	}
	c.replies = c.appendAck(c.replies, packets.Pubcomp, id, reason)
	if len(c.replies) >= 1<<10 {
		c.sendReplies()
	}
	return nil
}

func (c *mqttConn) sendReplies() {
	if len(c.replies) > 0 {
		c.writeAcks(c.replies)
		c.replies = c.replies[:0]
	}
}

// violate ends the connection after all that came before has been answered:
// otherwise the sensor would send the good messages again with each attempt.
func (c *mqttConn) violate(cause Cause, code packets.Code, err error) error {
	c.flush()
	c.flow.drain()
	if c.version == 5 {
		_ = c.m.server.DisconnectClient(c.client, code)
	}
	linger(c.Conn)
	c.close(cause, err)
	return err
}

// ended is called when mochi is through with the connection.
func (c *mqttConn) ended(err error) {
	_ = c.Conn.Close()
	c.freePlace()
	if c.client != nil {
		c.m.leave(c)
	}
	if g := c.guest.Load(); g != nil {
		c.m.intake.access.gone(g)
	}
	close(c.done)
	c.flow.drain()
	if why := c.closed.Load(); why != nil {
		c.m.intake.reject(why.cause)
		c.m.trouble.warn("mqtt connection closed", c.attrs(slog.String("cause", why.cause.String()), slog.Any("error", why.err))...)
		return
	}
	var code packets.Code
	switch {
	case expected(err) || errors.Is(err, errTakenOver) || c.m.ctx.Err() != nil:
		c.m.logger.Debug("mqtt connection ended", "remote", c.RemoteAddr().String())
	case errors.Is(err, packets.ErrServerBusy):
		c.m.intake.reject(CauseLimit)
		c.m.trouble.warn("mqtt connection refused: too many are open", c.attrs(slog.Int("max_connections", c.m.opts.MaxConnections))...)
	case errors.Is(err, packets.ErrPacketTooLarge):
		c.m.intake.reject(CauseTooLarge)
		c.m.trouble.warn("mqtt packet too large: connection closed", c.attrs(slog.Int("max_payload_bytes", c.m.opts.PayloadBytes))...)
	case errors.As(err, &code):
		c.m.intake.reject(CauseProtocol)
		c.m.trouble.warn("mqtt packet refused: connection closed", c.attrs(slog.Any("error", err))...)
	default: // a timeout, a reset
		c.m.trouble.warn("mqtt connection lost", c.attrs(slog.Any("error", err))...)
	}
}

func (c *mqttConn) attrs(more ...slog.Attr) []slog.Attr {
	attrs := make([]slog.Attr, 0, 2+len(more))
	if c.client != nil {
		attrs = append(attrs, slog.String("client", c.client.ID))
	}
	return append(append(attrs, slog.String("remote", c.RemoteAddr().String())), more...)
}
