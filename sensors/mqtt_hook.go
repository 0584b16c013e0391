package sensors

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"touchline"
	"touchline/payload"
)

// hook is where mochi calls the gateway.
type hook struct {
	mqtt.HookBase
	m *MQTT
}

func (h *hook) ID() string { return "touchline" }

func (h *hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablished,
		mqtt.OnDisconnect, mqtt.OnPacketRead, mqtt.OnPacketEncode, mqtt.OnACLCheck,
		mqtt.OnSubscribe, mqtt.OnUnsubscribe, mqtt.OnPublishDropped, mqtt.OnWill, mqtt.OnWillSent, mqtt.OnRetainMessage, mqtt.OnRetainedExpired:
		return true
	}
	return false
}

// consumed is what mochi gets instead of a packet that was dealt with here: an
// acknowledgement of a packet id that can't exist, on which it does nothing.
//
// mochi's own way is OnPublish with ErrRejectPacket, which answers nothing
// either. But what mochi does before it is wrong for a broker that answers
// later: invalid topics are dropped in silence, repeated QoS 2 messages are
// refused, and a rejection allocates a log record with the whole packet.
var consumed = packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}}

// OnPacketRead takes PUBLISH, PUBREL, and of DISCONNECT what becomes of the
// session. Any other packet is mochi's, and so are those of these three that
// break the protocol: it knows how to say so.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	var err error
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if pk.PublishValidate(maxAliases) != packets.CodeSuccess {
			return pk, nil
		}
		err = cl.Net.Conn.(*mqttConn).publish(&pk)
	case packets.Pubrel:
		err = cl.Net.Conn.(*mqttConn).release(pk.PacketID)
	case packets.Disconnect:
		if p, ours := &pk.Properties, &cl.Properties.Props; p.SessionExpiryIntervalFlag && (p.SessionExpiryInterval == 0 || ours.SessionExpiryInterval > 0) {
			ours.SessionExpiryInterval = min(p.SessionExpiryInterval, maxSessionExpiry)
			p.SessionExpiryIntervalFlag = false
		}
		return pk, nil
	default:
		return pk, nil
	}
	if err != nil {
		return pk, packets.ErrRejectPacket // ends the connection; why is known there
	}
	return consumed, nil
}

// OnConnect checks what mochi does not, and takes the session, so that none of
// an older connection is under way when mochi hands it on. An error closes the
// connection.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	cause := CauseProtocol
	refuse := func(code packets.Code, err error) error {
		cl.Net.Conn.(*mqttConn).closed.CompareAndSwap(nil, &closing{cause, err})
		if cl.Properties.ProtocolVersion < 5 && cause == CauseProtocol && code != packets.ErrClientIdentifierNotValid {
			code = packets.ErrBadUsernameOrPassword // 3.1.1 has no code for it but "not authorized"
		}
		_ = h.m.server.SendConnack(cl, code, false, nil)
		return code
	}
	if n := len(cl.ID); n > maxClientIDBytes {
		return refuse(packets.ErrClientIdentifierNotValid, fmt.Errorf("client id %.40q… has %d bytes: at most %d are allowed", cl.ID, n, maxClientIDBytes))
	}
	if n := pk.FixedHeader.Remaining; n > maxConnectBytes && !(pk.Connect.WillFlag && willBytes(&cl.Properties.Will) > maxWillBytes) {
		return refuse(packets.ErrPacketTooLarge, fmt.Errorf("CONNECT has %d bytes: at most %d are allowed", n, maxConnectBytes))
	}
	if pk.Connect.WillFlag {
		if n := willBytes(&cl.Properties.Will); n > maxWillBytes {
			return refuse(packets.ErrPacketTooLarge, fmt.Errorf("will has %d bytes: at most %d are allowed", n, maxWillBytes))
		}
		if _, _, err := parseTopic(pk.Connect.WillTopic); err != nil {
			return refuse(packets.ErrTopicNameInvalid, fmt.Errorf("will: %w", err))
		}
	}
	cl.Properties.Will.WillDelayInterval = 0
	cause = CauseAccess
	if code, err := h.login(cl, pk); err != nil {
		return refuse(code, err)
	}
	own(cl)
	if k := cl.State.Keepalive; cl.Properties.ProtocolVersion == 5 && (k == 0 || k > uint16(maxKeepalive/time.Second)) {
		cl.State.Keepalive, cl.State.ServerKeepalive = uint16(maxKeepalive/time.Second), true
	}
	// What mochi reads as no interval of the client's own it leaves alone: sessions
	// end by sessions.expire.
	p := &cl.Properties.Props
	cl.Net.Conn.(*mqttConn).capped = p.SessionExpiryInterval > maxSessionExpiry
	p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = min(p.SessionExpiryInterval, maxSessionExpiry), false
	err := h.takeOver(cl, pk.Connect.Clean)
	if !errors.Is(err, errHeld) {
		return err
	}
	cause = CauseLimit
	if cl.Properties.ProtocolVersion < 5 {
		return refuse(packets.ErrServerUnavailable, err)
	}
	return refuse(packets.ErrServerBusy, err)
}

// willBytes is what a will holds beside its topic, which is short.
func willBytes(w *mqtt.Will) int {
	n := len(w.Payload)
	for _, p := range w.User {
		n += len(p.Key) + len(p.Val)
	}
	return n
}

// own frees CONNECT's bytes, which all its strings share: what a session
// remembers of it gets memory of its own, and what nobody reads is forgotten.
func own(cl *mqtt.Client) {
	cl.ID = strings.Clone(cl.ID)
	p, w := &cl.Properties, &cl.Properties.Will
	p.Username, p.Props.User = nil, nil
	p.Props.AuthenticationMethod, p.Props.AuthenticationData = "", nil
	w.Payload, w.TopicName = bytes.Clone(w.Payload), strings.Clone(w.TopicName)
	w.User = slices.Clone(w.User)
	for i, p := range w.User {
		w.User[i] = packets.UserProperty{Key: strings.Clone(p.Key), Val: strings.Clone(p.Val)}
	}
}

// OnConnectAuthenticate has nothing left to ask: OnConnect let nobody through
// whom Access did not let in.
func (h *hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// takeOver gives the client its session. An older connection of the same client
// id is ended (MQTT 5, section 3.1.4), and its end waited for. That may take
// long where it waits for the store: then the client has to come again. The
// error is errHeld, errTakenOver, or that of the broker's end.
func (h *hook) takeOver(cl *mqtt.Client, clean bool) error {
	c, ss, began := cl.Net.Conn.(*mqttConn), h.m.sessions, time.Now()
	c.client, c.version = cl, cl.Properties.ProtocolVersion
	older, begun := ss.claim(cl.ID, c)
	if older != nil {
		leaves := time.NewTimer(goodbyePatience)
		select {
		case <-older.done: // it had said good-bye, which was on its way
		case <-leaves.C:
			h.m.end(older, begun, c)
		}
		leaves.Stop()
	}
	defer func() { c.postpone(time.Since(began)) }() // of a packet that came with CONNECT
	timeout := time.NewTimer(h.m.takeoverPatience)
	defer timeout.Stop()
	for before := ss.waitsFor(c); before != nil; before = ss.waitsFor(c) {
		select {
		case <-before.done:
		case <-timeout.C:
			if ss.giveUp(cl.ID, c) {
				return errHeld
			}
		case <-c.claim.lost:
			return errTakenOver
		case <-h.m.ctx.Done():
			return h.m.ctx.Err()
		}
	}
	if err := ss.begin(cl.ID, c, clean); err != nil {
		return err
	}
	c.named, c.resumed = sessionStays(&cl.Properties) > 0, !clean
	c.name = touchline.DigestOf("mqtt", cl.ID)
	return nil
}

// end closes a connection whose client id newer has. One whose session has
// begun, and that speaks MQTT 5, is told why, unless it does not read.
func (m *MQTT) end(older *mqttConn, begun bool, newer *mqttConn) {
	if older.client.Closed() {
		return // it has said good-bye, and waits for the store
	}
	m.trouble.warn("mqtt client id is used twice: the older connection was closed", slog.String("client", older.client.ID),
		slog.String("older", older.RemoteAddr().String()), slog.String("newer", newer.RemoteAddr().String()))
	if begun && older.version == 5 {
		impatient := time.AfterFunc(farewellPatience, func() { _ = older.Conn.Close() })
		_ = m.server.DisconnectClient(older.client, packets.ErrSessionTakenOver)
		impatient.Stop()
	}
	_ = older.Conn.Close()
}

// sessionStays says how long a client that comes back may go on where its
// connection was lost.
func sessionStays(p *mqtt.ClientProperties) time.Duration {
	switch {
	case p.ProtocolVersion == 5:
		return time.Duration(p.Props.SessionExpiryInterval) * time.Second
	case p.Clean:
		return 0
	}
	return sessionExpiry
}

// OnSessionEstablished comes after CONNACK and before the first message.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := cl.Net.Conn.(*mqttConn)
	c.session.connected(c)
	h.m.logger.Debug("mqtt client connected", "client", cl.ID, "remote", c.RemoteAddr().String(), "version", c.version)
}

// OnDisconnect hands over the messages that came just before DISCONNECT.
func (h *hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	cl.Net.Conn.(*mqttConn).flush()
}

// leave ends what c has of its session, when mochi is through with it.
func (m *MQTT) leave(c *mqttConn) {
	c.client.Properties.Will = mqtt.Will{} // was sent; the session of an absent client is kept without it
	stays := sessionStays(&c.client.Properties)
	if stays == 0 {
		m.forget(c.client) // is left over where CONNACK could not be sent
	}
	m.sayForgotten(m.sessions.detach(c.client.ID, c, stays))
}

// forgetAbsent has mochi forget a client whose session is over.
func (m *MQTT) forgetAbsent(id string) {
	if old, ok := m.server.Clients.Get(id); ok {
		m.forget(old)
	}
}

// sayForgotten tells of a session that had to be forgotten; "" is none.
func (m *MQTT) sayForgotten(id string) {
	if id != "" {
		m.intake.reject(CauseLimit)
		m.trouble.warn("mqtt session forgotten: too many clients are away", slog.String("client", id))
	}
}

// forget removes a client that is gone from mochi's memory.
func (m *MQTT) forget(cl *mqtt.Client) {
	if now, ok := m.server.Clients.Get(cl.ID); !ok || now != cl {
		return
	}
	m.server.UnsubscribeClient(cl)
	m.server.Clients.Delete(cl.ID)
}

// OnPacketEncode tells MQTT 5 clients the limits, which mochi holds but does
// not mention.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack && pk.ReasonCode == packets.CodeSuccess.Code && cl.Properties.ProtocolVersion == 5 {
		pk.Properties.MaximumPacketSize = h.m.server.Options.Capabilities.MaximumPacketSize
		pk.Properties.TopicAliasMaximum = maxAliases
		pk.Properties.SharedSubAvailable, pk.Properties.SharedSubAvailableFlag = 0, true
		if cl.Net.Conn.(*mqttConn).capped {
			pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = maxSessionExpiry, true
		}
	}
	return pk
}

// OnSubscribe grants QoS 0: a display that is slow or away must cost neither
// memory nor a sensor's time. What a subscriber misses is stored all the same.
// An empty filter is how mochi is made to refuse one.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	h.m.reviewRetained() // what it is about to get
	room := maxSubscriptions - cl.State.Subscriptions.Len()
	forgotten, err := h.m.sessions.subscribe(cl.ID, cl.Net.Conn.(*mqttConn))
	h.m.sayForgotten(forgotten)
	if err != nil {
		if errors.Is(err, errNoPlace) { // who was taken over knows it
			h.m.intake.reject(CauseLimit)
			h.m.trouble.warn("mqtt subscriber refused: too many are connected", slog.String("client", cl.ID), slog.Int("subscribers", h.m.opts.Subscribers))
		}
		for i := range pk.Filters {
			pk.Filters[i].Filter = ""
		}
		return pk
	}
	for i := range pk.Filters {
		f := &pk.Filters[i]
		f.Qos = 0
		f.Filter = strings.Clone(f.Filter) // its bytes are those of a whole packet
		_, known := cl.State.Subscriptions.Get(f.Filter)
		if !known {
			room--
		}
		if len(f.Filter) > maxFilterBytes || room < 0 && !known {
			h.m.intake.reject(CauseLimit)
			h.m.trouble.warn("mqtt subscription refused: too many or too long", slog.String("client", cl.ID),
				slog.Int("max_subscriptions", maxSubscriptions), slog.Int("max_filter_bytes", maxFilterBytes))
			f.Filter = ""
		}
	}
	return pk
}

// OnUnsubscribe leaves of it what the client has subscribed to, once. mochi
// counts any other filter as one subscription less, if somebody has it, until
// nobody seems to listen. An empty filter is one that nobody has.
func (h *hook) OnUnsubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	for i := range pk.Filters {
		f := pk.Filters[i].Filter
		_, known := cl.State.Subscriptions.Get(f)
		if !known || slices.ContainsFunc(pk.Filters[:i], func(s packets.Subscription) bool { return s.Filter == f }) {
			pk.Filters[i].Filter = ""
		}
	}
	return pk
}

// OnACLCheck is asked for filters and for each delivery. $SYS and shared
// subscriptions are not offered. What is published is checked by publish; here
// it is the gateway itself that publishes what is durable.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	if write {
		return true
	}
	if strings.HasPrefix(topic, "$") {
		return false
	}
	c, ok := cl.Net.Conn.(*mqttConn)
	if !ok {
		return false
	}
	g := c.guest.Load()
	if strings.ContainsAny(topic, "+#") {
		return g != nil && g.maySubscribe(topic)
	}
	return g != nil && g.mayReceive(topic)
}

// OnPublishDropped counts what a subscriber was too slow for.
func (h *hook) OnPublishDropped(*mqtt.Client, packets.Packet) { h.m.intake.dropped.Add(1) }

// notSent is the topic of a will that is dropped, since mochi sends what OnWill
// returns: nobody may subscribe to it or receive it, and no CONNECT may name it.
const notSent = "$dropped"

// OnWill is asked when a client is gone without DISCONNECT. Who was let in when
// the will was left may not be any more: it must not have the last word.
func (h *hook) OnWill(cl *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	c := cl.Net.Conn.(*mqttConn)
	if err := c.guest.Load().stillMayLeave(will.TopicName, will.Payload); err != nil {
		h.m.intake.reject(CauseAccess)
		h.m.trouble.warn("mqtt will dropped", c.attrs(slog.Any("error", err))...)
		will.TopicName, will.Retain = notSent, false
		return will, nil
	}
	will.Retain = h.m.mayRetain(will.TopicName, will.Payload, will.Retain)
	return will, nil
}

// OnWillSent stores a will like any message of its sensor. Its time is that of
// the sending.
func (h *hook) OnWillSent(_ *mqtt.Client, pk packets.Packet) {
	if pk.TopicName == notSent {
		return
	}
	m := h.m
	sensor, metric, err := parseTopic(pk.TopicName)
	if err != nil {
		panic("BUG: a will with a bad topic was let in")
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.wg.Add(1)
	m.mu.Unlock()
	now, clock := m.intake.stamp()
	b := &load{messages: 1, bytes: len(pk.Payload), arrived: now, clock: clock}
	src := payload.Source{Sensor: sensor, Metric: metric, Now: b.arrived}
	if b.samples, err = payload.NewDecoder().Decode(nil, payload.Auto, src, pk.Payload); err != nil {
		b.samples, b.raw = []touchline.Sample{payload.Raw(src, pk.Payload)}, 1
	}
	m.intake.counters[TransportMQTT].messages.Add(1)
	done := func(err error) {
		m.intake.account(TransportMQTT, &seenCache{}, b, err)
		m.wg.Done()
	}
	if err := m.intake.store.AppendAsync(m.ctx, touchline.Arrival{Samples: b.samples, Clock: b.clock}, done); err != nil {
		done(err)
	}
}

// hasSubscribers says whether anybody listens.
func (m *MQTT) hasSubscribers() bool { return atomic.LoadInt64(&m.server.Info.Subscriptions) > 0 }

// mayRetain says whether a message asked to be retained may be: it is small,
// and there are not too many. It is passed on in any case.
func (m *MQTT) mayRetain(topic string, payload []byte, asked bool) bool {
	if !asked || len(payload) == 0 {
		return asked
	}
	retained := m.server.Topics.Retained
	if _, known := retained.Get(topic); len(payload) <= maxRetainedBytes && (known || retained.Len() < maxRetained) {
		return true
	}
	m.trouble.warn("mqtt message not retained: too large, or too many are", slog.String("topic", topic),
		slog.Int("max_bytes", maxRetainedBytes), slog.Int("max_messages", maxRetained))
	return false
}
