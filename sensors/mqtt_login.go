package sensors

import (
	"fmt"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"touchline"
	"touchline/payload"
)

// ownerMark parts the sensor from the client id in the ids of sessions. MQTT
// allows it in no client id, so nobody can name another one's session.
const ownerMark = "\x00"

// login lets the client of a CONNECT in. Its session belongs to the sensor
// from then on: client ids of two sensors, or of one and somebody without a
// key, never are the same. The error is in closed already.
func (h *hook) login(cl *mqtt.Client, pk packets.Packet) (packets.Code, error) {
	c := cl.Net.Conn.(*mqttConn)
	access := h.m.intake.access
	sensor, secret := string(pk.Connect.Username), string(pk.Connect.Password)
	if sensor == "" && secret == "" && access.rules.Load().Hold && cl.Properties.Props.AssignedClientID == "" && touchline.CheckSensor(cl.ID) == nil {
		sensor = cl.ID // so that a person sees who waits, and can give it a key
	}
	g, no := access.enter(sensor, secret)
	if no == nil {
		no = access.stay(g, func(err error) { c.close(CauseAccess, err) })
	}
	if no != nil {
		return refusalCode(cl, no), no.why
	}
	c.guest.Store(g)
	if will := &cl.Properties.Will; pk.Connect.WillFlag {
		if err := mayLeave(g, pk.Connect.WillTopic, will.Payload); err != nil {
			return packets.ErrNotAuthorized, err
		}
	}
	if g.login.Sensor != "" {
		cl.ID = g.login.Sensor + ownerMark + cl.ID
	}
	return packets.CodeSuccess, nil
}

// refusalCode is what the client is told: on MQTT 5 with a reason in words.
func refusalCode(cl *mqtt.Client, no *refusal) packets.Code {
	code := packets.ErrBadUsernameOrPassword
	switch {
	case no.busy && cl.Properties.ProtocolVersion == 5:
		code = packets.ErrQuotaExceeded
	case no.busy:
		code = packets.ErrServerUnavailable
	case no.held:
		code = packets.ErrNotAuthorized
	}
	if cl.Properties.ProtocolVersion == 5 { // for 3.1.1 mochi looks codes up, words included
		code.Reason = no.text
	}
	return code
}

// mayLeave says whether the guest may have this will sent when it is gone.
func mayLeave(g *guest, topic string, data []byte) error {
	sensor, metric, err := parseTopic(topic)
	if err != nil {
		return err
	}
	if !g.mayPublish(sensor) {
		return g.notAllowed(sensor)
	}
	samples, err := payload.NewDecoder().Decode(nil, payload.Auto, payload.Source{Sensor: sensor, Metric: metric, Now: 1}, data)
	if err != nil {
		return nil // it is kept whole, under the topic's sensor
	}
	if name, found := g.foreign(samples, sensor); found {
		return g.notAllowed(name)
	}
	return nil
}

// stillMayLeave says the same of a will when its time has come: its sensor's
// key may have been revoked, or its name have become another's, since CONNECT.
func (g *guest) stillMayLeave(topic string, data []byte) error {
	if g.login.Sensor != "" && !g.access.opts.Keys.Admits(g.login) {
		return fmt.Errorf("sensor %q: %w", g.login.Sensor, errRevoked)
	}
	g.latest = "" // the keys are asked, however long ago they were
	return mayLeave(g, topic, data)
}
