package sensors

import (
	"log/slog"
	"strings"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// retainers remembers who left which retained message, since it outlives the
// connection, and what its sender may do: a name that anybody could use may get
// a key, and a key may be revoked. What a stranger left under a name must not be
// shown as the word of who has that name now.
//
// There are at most maxRetained, of some 300 bytes each.
type retainers struct {
	mu         sync.Mutex // covers what follows
	byTopic    map[string]*guest
	generation uint64 // of the file of keys, when all were looked at last
}

// OnRetainMessage is called after a message was retained, or forgotten. Two
// that came for one topic at a time may be told in the other order: who left
// the one that is there now, it says itself.
func (h *hook) OnRetainMessage(cl *mqtt.Client, pk packets.Packet, _ int64) {
	r, retained := &h.m.retainers, h.m.server.Topics.Retained
	r.mu.Lock()
	defer r.mu.Unlock()
	now, there := retained.Get(pk.TopicName)
	if !there {
		delete(r.byTopic, pk.TopicName)
		return
	}
	c, ok := cl.Net.Conn.(*mqttConn)
	if !ok || now.Origin != cl.ID {
		return
	}
	g := c.guest.Load()
	left := &guest{access: g.access, login: g.login} // the other one's names are for its reader alone
	r.byTopic[strings.Clone(pk.TopicName)] = left
	// Its commit may have taken longer than it took to give the name a key.
	h.m.reconsider(pk.TopicName, now, left)
}

// OnRetainedExpired is called when MQTT 5's message expiry has removed one.
func (h *hook) OnRetainedExpired(topic string) {
	r := &h.m.retainers
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byTopic, topic)
}

// reviewRetained forgets retained messages of who may not publish them any
// more. It is called before anybody gets one, and looks where the file of keys
// has changed: a thousand small messages take some milliseconds.
func (m *MQTT) reviewRetained() {
	generation := m.intake.access.epoch()
	m.retainers.mu.Lock()
	defer m.retainers.mu.Unlock()
	if m.retainers.generation == generation {
		return
	}
	m.retainers.generation = generation
	for topic, left := range m.retainers.byTopic {
		if pk, there := m.server.Topics.Retained.Get(topic); there {
			m.reconsider(topic, pk, left)
		}
	}
}

// reconsider forgets a retained message that its sender could not publish now.
// It is called with retainers.mu held.
func (m *MQTT) reconsider(topic string, pk packets.Packet, left *guest) {
	err := left.stillMayLeave(topic, pk.Payload)
	if err == nil {
		return
	}
	delete(m.retainers.byTopic, topic)
	m.server.Topics.RetainMessage(packets.Packet{TopicName: topic})
	m.intake.reject(CauseAccess)
	m.trouble.warn("mqtt retained message forgotten: who left it may not publish it any more", slog.String("topic", topic), slog.Any("error", err))
}
