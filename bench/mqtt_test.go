package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// decode reads a packet with another library's codec.
func decode(t *testing.T, b []byte) packets.Packet {
	t.Helper()
	pk := packets.Packet{ProtocolVersion: 4}
	if err := pk.FixedHeader.Decode(b[0]); err != nil {
		t.Fatal(err)
	}
	length, used, err := packets.DecodeLength(bytes.NewReader(b[1:]))
	if err != nil || 1+used+length != len(b) {
		t.Fatalf("packet of %d bytes announces %d behind a header of %d (%v)", len(b), length, 1+used, err)
	}
	pk.FixedHeader.Remaining = length
	decoders := map[byte]func([]byte) error{
		packets.Connect: pk.ConnectDecode, packets.Publish: pk.PublishDecode,
		packets.Puback: pk.PubackDecode, packets.Subscribe: pk.SubscribeDecode,
	}
	if err := decoders[pk.FixedHeader.Type](b[1+used:]); err != nil {
		t.Fatal(err)
	}
	return pk
}

func TestPackets_AreWhatAnotherCodecReads(t *testing.T) {
	for _, clean := range []bool{true, false} {
		pk := decode(t, appendConnect(nil, "bench-1", clean))
		if pk.Connect.ClientIdentifier != "bench-1" || pk.Connect.Clean != clean || pk.Connect.Keepalive != 0 || pk.ProtocolVersion != 4 || string(pk.Connect.ProtocolName) != "MQTT" {
			t.Errorf("connect reads as %+v", pk.Connect)
		}
	}
	for _, size := range []int{0, 1, 100, 127, 128, 16383, 16384} {
		payload := bytes.Repeat([]byte{'x'}, size)
		pk := decode(t, appendPublish(nil, "sensors/a", 0xabcd, payload))
		if pk.TopicName != "sensors/a" || pk.PacketID != 0xabcd || pk.FixedHeader.Qos != 1 || !bytes.Equal(pk.Payload, payload) {
			t.Errorf("publish of %d bytes reads as %s, id %x, qos %d, %d bytes", size, pk.TopicName, pk.PacketID, pk.FixedHeader.Qos, len(pk.Payload))
		}
	}
	if pk := decode(t, appendPuback(nil, 7)); pk.PacketID != 7 {
		t.Errorf("puback reads as id %d", pk.PacketID)
	}
	if pk := decode(t, appendSubscribe(nil, 9, "sensors/#")); pk.PacketID != 9 || len(pk.Filters) != 1 || pk.Filters[0].Filter != "sensors/#" || pk.Filters[0].Qos != 1 {
		t.Errorf("subscribe reads as %+v", pk)
	}
}

func TestCutPacket_CutsWhatIsCompleteAndKeepsTheRest(t *testing.T) {
	stream := appendPublish(nil, "t", 1, bytes.Repeat([]byte{'y'}, 300))
	first := len(stream)
	stream = appendPuback(stream, 2)
	for n := range first {
		if _, _, rest, err := cutPacket(stream[:n]); !errors.Is(err, errShort) || len(rest) != n {
			t.Fatalf("%d of %d bytes: %v, %d left: want errShort, and all of them", n, first, err, len(rest))
		}
	}
	kind, body, rest, err := cutPacket(stream)
	if err != nil || kind != typePublish || len(rest) != 4 {
		t.Fatalf("kind %d, %d bytes left, %v: want a publish and a puback left", kind, len(rest), err)
	}
	if id, payload, err := cutPublish(body); err != nil || id != 1 || len(payload) != 300 {
		t.Errorf("publish has id %d and %d bytes (%v): want 1 and 300", id, len(payload), err)
	}
	kind, body, rest, err = cutPacket(rest)
	if id, idErr := packetID(body); err != nil || idErr != nil || kind != typePuback || id != 2 || len(rest) != 0 {
		t.Errorf("kind %d, id %d, %d left, %v: want puback 2", kind, id, len(rest), err)
	}
}

func TestCutPacket_RefusesNonsense(t *testing.T) {
	for _, b := range [][]byte{
		{0x40, 0x80, 0x80, 0x80, 0x80, 0x01}, // five bytes of length
		{0x40, 0xff, 0xff, 0xff, 0x7f},       // 256 MB
	} {
		if _, _, _, err := cutPacket(b); err == nil || errors.Is(err, errShort) {
			t.Errorf("% x: %v: want an error", b, err)
		}
	}
	for _, body := range [][]byte{{}, {0}, {0, 5, 'a'}, {0, 1, 'a', 0}} {
		if _, _, err := cutPublish(body); err == nil {
			t.Errorf("publish % x: want an error", body)
		}
	}
	if _, err := packetID([]byte{1}); err == nil {
		t.Error("an acknowledgement of one byte: want an error")
	}
}

func TestSample_IsAnObjectOfAboutAHundredBytes(t *testing.T) {
	s := &sensor{random: 1, body: body{heart: 120, x: 50_000, y: 30_000, speed: 3_000}}
	const at = 1_800_000_000_123_456_789
	bytesTotal := 0
	for range 1000 {
		b := s.appendSample(nil, at)
		bytesTotal += len(b)
		var m map[string]json.Number
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if len(m) != samplesPerMessage+1 {
			t.Fatalf("%s: %d members: want t and %d metrics", b, len(m), samplesPerMessage)
		}
		if got, err := sampleTime(b); err != nil || got > at || got < at-1024 {
			t.Fatalf("%s: time %d (%v): want %d less some hundred ns", b, got, err, int64(at))
		}
	}
	if mean := bytesTotal / 1000; mean < 90 || mean > 110 {
		t.Errorf("messages have %d bytes on average: want about 100", mean)
	}
	if _, err := sampleTime([]byte(`{"x":1}`)); err == nil {
		t.Error("a message without the time in front: want an error")
	}
}
