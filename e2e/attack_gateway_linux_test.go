package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestAttack_TheGatewayFromOutside tries, all at a time, what somebody on the
// venue's network can do to the gateway's listeners: slowly, hugely, and with
// the wrong words; as a stranger, and with the key of another sensor.
func TestAttack_TheGatewayFromOutside(t *testing.T) {
	t.Parallel() // it waits for limits
	f := newFort(t)
	attacks := httpAttacks(f)
	attacks = append(attacks, streamAttacks(f)...)
	attacks = append(attacks, mqttAttacks(f)...)
	attacks = append(attacks, tlsAttacks()...)
	f.try(attacks)
	if n := f.status().Sensors.Raw; n != 0 {
		t.Errorf("%d payloads of an attacker were kept", n)
	}
	for _, s := range f.status().Sensors.Seen {
		if s.ID != "belt-17" && s.ID != "belt-18" {
			t.Errorf("there are samples of %s", s.ID)
		}
	}
	f.drained()
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// second is the pace of a slow attacker: a byte each.
const second = time.Second

func httpAttacks(f *fort) []attack {
	stolen := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("belt-18:"+f.stolen)) + "\r\n"
	post := func(headers string) string { return "POST /v1/samples HTTP/1.1\r\nHost: gateway\r\n" + headers }
	const json = "Content-Type: application/json\r\n"
	over := func(b blow) func(*fort) string { return func(f *fort) string { return b.strike(f, f.http) } }
	whole := func(headers, body string) func(*fort) string {
		return over(blow{head: post(stolen+headers+fmt.Sprintf("Content-Length: %d\r\nConnection: close\r\n\r\n", len(body))) + body})
	}
	return []attack{
		{what: "HTTP: says nothing", want: `^nothing`, attack: over(blow{})},
		{what: "HTTP: half a request line, and no more", want: `^nothing|^400`, attack: over(blow{head: "POST /v1/sam"})},
		{what: "HTTP: a header of a byte a second (slowloris)", want: `^nothing`, attack: over(blow{head: post("X-A: "), again: "a", every: second})},
		{what: "HTTP: header lines without end", want: `^431`, attack: over(blow{head: post(""), again: strings.Repeat("X-A: b\r\n", 100)})},
		{what: "HTTP: a header of 1 MiB", want: `^431`, attack: over(blow{head: post("X-A: "+strings.Repeat("a", mib)) + "\r\n\r\n"})},
		{what: "HTTP: a URL of 1 MiB", want: `^431`, attack: over(blow{head: "GET /v1/samples/" + strings.Repeat("a", mib) + " HTTP/1.1\r\nHost: gateway\r\n\r\n"})},
		{what: "HTTP: a query with 3,000 parameters", want: `^401`, attack: over(blow{head: "GET /v1/samples/stream?" + strings.Repeat("a=1&", 3000) + " HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"})},
		{what: "HTTP: two Content-Lengths", want: `^400`, attack: over(blow{head: post(stolen + json + "Content-Length: 2\r\nContent-Length: 20\r\n\r\n{}")})},
		{what: "HTTP: HTTP/2's preface", want: `^505|^400`, attack: over(blow{head: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"})},
		{what: "HTTP: TLS on the listener without", want: `^400`, attack: over(blow{head: "\x16\x03\x01\x02\x00\x01\r\n\r\n"})},
		{what: "HTTP: a body of 1 GiB, without a key", want: `^401`, attack: over(blow{head: post(json + "Content-Length: 1073741824\r\n\r\n"), again: strings.Repeat(" ", 64*kib)})},
		{what: "HTTP: a body of a byte a second, without a key", want: `^401`, attack: over(blow{head: post(json + "Content-Length: 1000\r\n\r\n"), again: " ", every: second})},
		{what: "HTTP: the guessed key of belt-17", want: `^401`, attack: over(blow{head: post("Authorization: Bearer tlsk_guess\r\n" + json + "Connection: close\r\nContent-Length: 8\r\n\r\n{\"hr\":1}")})},
		{what: "HTTP: belt-17's name with belt-18's key", want: `^403`, attack: whole("Content-Type: application/senml+json\r\n", `[{"bn":"belt-17/","n":"hr","v":1}]`)},
		{what: "HTTP: requests without end, answers never read", want: `^nothing`, attack: over(blow{again: strings.Repeat("GET /v1/samples HTTP/1.1\r\nHost: gateway\r\n\r\n", 50), deaf: true})},
		{what: "HTTP: readings of what is not there without end, never read", want: `^nothing`, attack: over(blow{again: strings.Repeat("GET /etc/passwd HTTP/1.1\r\nHost: gateway\r\n\r\n", 50), deaf: true})},

		{what: "HTTP, with a stolen key: a body of a byte a second", want: `^400`, long: true, attack: over(blow{head: post(stolen + json + "Content-Length: 1000\r\n\r\n"), again: " ", every: second})},
		{what: "HTTP, with a stolen key: a body of 1 GiB", want: `^413`, attack: over(blow{head: post(stolen + json + "Content-Length: 1073741824\r\n\r\n")})},
		{what: "HTTP, with a stolen key: a chunked body without end", want: `^413`, attack: over(blow{head: post(stolen + json + "Transfer-Encoding: chunked\r\n\r\n"), again: "10000\r\n" + strings.Repeat(" ", 64*kib) + "\r\n"})},
		{what: "HTTP, with a stolen key: chunk extensions without end", want: `^400|^413`, attack: over(blow{head: post(stolen + json + "Transfer-Encoding: chunked\r\n\r\n"), again: "1;" + strings.Repeat("a", 4000) + "\r\n \r\n"})},
		{what: "HTTP, with a stolen key: 1 GiB of zeros in 1 MiB of gzip", want: `^415`, attack: whole(json+"Content-Encoding: gzip\r\n", gzipBomb())},
		{what: "HTTP, with a stolen key: JSON 500,000 deep", want: `^400`, attack: whole(json, strings.Repeat(`{"a":`, 200_000))},
		{what: "HTTP, with a stolen key: a list 500,000 deep", want: `^400`, attack: whole(json, strings.Repeat("[", 500_000))},
		{what: "HTTP, with a stolen key: SenML of a million records", want: `^413`, attack: whole("Content-Type: application/senml+json\r\n", `[{"bn":"belt-18/"}`+strings.Repeat(`,{"n":"a","v":1}`, 1_000_000)+"]")},
		{what: "HTTP, with a stolen key: CBOR that says it has 2^60 records", want: `^400`, attack: whole("Content-Type: application/senml+cbor\r\n", "\x9b\x10\x00\x00\x00\x00\x00\x00\x00")},
		{what: "HTTP, with a stolen key: CBOR 500,000 deep", want: `^400`, attack: whole("Content-Type: application/senml+cbor\r\n", strings.Repeat("\x81", 500_000))},
	}
}

// gzipBomb is 1 GiB of zeros.
func gzipBomb() string {
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	zeros := make([]byte, mib)
	for range 64 { // of it: the rest would be as small, and is never looked at
		_, _ = w.Write(zeros)
	}
	_ = w.Close()
	return packed.String()
}

func streamAttacks(f *fort) []attack {
	open := func(headers string) string {
		return "GET /v1/samples/stream HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + headers + "\r\n"
	}
	stolen := "Authorization: Bearer " + f.stolen + "\r\n"
	const mask = "\x00\x00\x00\x00"
	over := func(b blow) func(*fort) string { return func(f *fort) string { return b.strike(f, f.http) } }
	return []attack{
		{what: "WebSocket: without a key", want: `^401`, attack: over(blow{head: open("Connection: close\r\n")})},
		{what: "WebSocket: from another site's page, with the visitor's key", want: `^403`, attack: over(blow{head: open(stolen + "Origin: https://evil.example\r\n"), halfway: true})},
		{what: "WebSocket, with a stolen key: a message of 1 GiB", want: `1009`, attack: over(blow{upgrade: open(stolen), head: "\x81\xff\x00\x00\x00\x00\x40\x00\x00\x00" + mask, again: strings.Repeat(" ", 64*kib)})},
		{what: "WebSocket, with a stolen key: fragments without end", want: `1009`, attack: over(blow{upgrade: open(stolen), head: "\x01\xfe\x10\x00" + mask + strings.Repeat(" ", 4*kib), again: "\x00\xfe\x10\x00" + mask + strings.Repeat(" ", 4*kib)})},
		{what: "WebSocket, with a stolen key: a compressed bomb", want: `1002`, attack: over(blow{upgrade: open(stolen + "Sec-WebSocket-Extensions: permessage-deflate\r\n"), head: "\xc1\xfe\x10\x00" + mask + strings.Repeat("\x00", 4*kib)})},
		{what: "WebSocket, with a stolen key: a frame without a mask", want: `1002`, attack: over(blow{upgrade: open(stolen), head: "\x81\x05hello"})},
		{what: "WebSocket, with a stolen key: text that is none", want: `1007`, attack: over(blow{upgrade: open(stolen), head: "\x81\x82" + mask + "\xff\xfe"})},
		{what: "WebSocket, with a stolen key: a ping of 64 KiB", want: `1002`, attack: over(blow{upgrade: open(stolen), head: "\x89\xfe\xff\xff" + mask + strings.Repeat(" ", 65535)})},
		{what: "WebSocket, with a stolen key: a message of a byte a second", want: `^nothing|no word`, long: true, attack: over(blow{upgrade: open(stolen), head: "\x81\xfe\x10\x00" + mask, again: " ", every: second})},
		{what: "WebSocket, with a stolen key: messages without end, answers never read", want: `^nothing`, attack: over(blow{upgrade: open(stolen), again: strings.Repeat("\x81\x81"+mask+"{", 1000), deaf: true})},
	}
}

func mqttAttacks(f *fort) []attack {
	over := func(b blow) func(*fort) string { return func(f *fort) string { return b.strike(f, f.mqtt) } }
	clients := 0
	hello := func() string { // a client id of its own, or one would end the other
		clients++
		return string(mqttConnect(fmt.Sprintf("evil-%d", clients), "belt-18", f.stolen))
	}
	twice := hello()
	publish := func(topic, payload string) string {
		return string(mqttPacket(0x32, append(append(mqttString(nil, topic), 0, 1), payload...)))
	}
	long := strings.Repeat("a", 65535)
	var filters []byte
	for i := range 5000 {
		filters = append(mqttString(filters, fmt.Sprintf("sensors/belt-18/%d", i)), 0)
	}
	return []attack{
		{what: "MQTT: says nothing", want: `^nothing`, attack: over(blow{})},
		{what: "MQTT: CONNECT of a byte a second", want: `^nothing`, attack: over(blow{head: "\x10\x7f\x00\x04MQTT", again: "\x00", every: second})},
		{what: "MQTT: CONNECT that says it has 256 MiB", want: `^nothing|CONNACK`, attack: over(blow{head: "\x10\xff\xff\xff\x7f\x00\x04MQTT", again: strings.Repeat("a", 64*kib)})},
		{what: "MQTT: a length without end", want: `^nothing`, attack: over(blow{head: "\x10\xff\xff\xff\xff\xff\xff"})},
		{what: "MQTT: HTTP", want: `^nothing`, attack: over(blow{head: "GET / HTTP/1.1\r\n\r\n"})},
		{what: "MQTT: PUBLISH before CONNECT", want: `^nothing`, attack: over(blow{head: publish("sensors/belt-17/hr", "1")})},
		{what: "MQTT: no key", want: `CONNACK 0x0[45]`, attack: over(blow{head: string(mqttConnect("belt-17", "", ""))})},
		{what: "MQTT: a guessed key", want: `CONNACK 0x0[45]`, attack: over(blow{head: string(mqttConnect("x", "belt-17", "tlsk_guess"))})},
		{what: "MQTT: belt-18's key for belt-17", want: `CONNACK 0x0[45]`, attack: over(blow{head: string(mqttConnect("x", "belt-17", f.stolen))})},
		{what: "MQTT: a client id of 64 KiB", want: `^nothing|CONNACK 0x0[245]`, attack: over(blow{head: string(mqttConnect(long, "belt-18", f.stolen))})},
		{what: "MQTT: a password of 64 KiB", want: `^nothing|CONNACK 0x0[45]`, attack: over(blow{head: string(mqttConnect("x", "belt-18", long))})},

		{what: "MQTT, with a stolen key: another sensor's topic", want: `CONNACK 0x00, closed`, attack: over(blow{head: hello() + publish("sensors/belt-17/hr", "1")})},
		{what: "MQTT, with a stolen key: another sensor's name in the payload", want: `CONNACK 0x00, closed`, attack: over(blow{head: hello() + publish("sensors/belt-18", `[{"bn":"belt-17/","n":"hr","v":1}]`)})},
		{what: "MQTT, with a stolen key: a topic of 64 KiB", want: `CONNACK 0x00, closed`, attack: over(blow{head: hello() + publish(long, "1")})},
		{what: "MQTT, with a stolen key: a payload of 256 MiB", want: `CONNACK 0x00, closed`, attack: over(blow{head: hello() + "\x32\xff\xff\xff\x7f\x00\x0dsensors/belt-18\x00\x01", again: strings.Repeat("a", 64*kib)})},
		{what: "MQTT, with a stolen key: a payload of 66 KiB", want: `CONNACK 0x00, closed`, attack: over(blow{head: hello() + publish("sensors/belt-18", strings.Repeat("1", 66*kib))})},
		{what: "MQTT, with a stolen key: a packet of a byte a second", want: `CONNACK 0x00, closed`, long: true, attack: over(blow{head: hello() + "\x30\xff\x7f\x00\x0dsensors/belt-18", again: "1", every: second})},
		{what: "MQTT, with a stolen key: 5,000 subscriptions", want: `CONNACK 0x00, closed`, attack: over(blow{head: hello() + string(mqttPacket(0x82, append([]byte{0, 1}, filters...))) + "\xe0\x00"})},
		{what: "MQTT, with a stolen key: pings without end, answers never read", want: `^nothing`, long: true, attack: over(blow{head: hello(), again: strings.Repeat("\xc0\x00", 10_000), deaf: true})},
		{what: "MQTT, with a stolen key: CONNECT twice", want: `CONNACK 0x00, closed`, attack: over(blow{head: twice + twice})},
	}
}

func tlsAttacks() []attack {
	silent := func(port func(*fort) int) func(*fort) string {
		return func(f *fort) string { return blow{head: "\x16\x03\x01\x02"}.strike(f, port(f)) }
	}
	old := func(port func(*fort) int) func(*fort) string {
		return func(f *fort) string {
			conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port(f)), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
			if err == nil {
				conn.Close()
				return "a connection"
			}
			return "an error: " + err.Error()
		}
	}
	plain := func(port func(*fort) int) func(*fort) string {
		return func(f *fort) string {
			return blow{head: "GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"}.strike(f, port(f))
		}
	}
	mqtts, https := func(f *fort) int { return f.mqttTLS }, func(f *fort) int { return f.httpTLS }
	return []attack{
		{what: "MQTT with TLS: half a ClientHello", want: `^nothing`, attack: silent(mqtts)},
		{what: "HTTP with TLS: half a ClientHello", want: `^nothing`, attack: silent(https)},
		{what: "MQTT with TLS: TLS 1.1", want: `protocol version`, attack: old(mqtts)},
		{what: "HTTP with TLS: TLS 1.1", want: `protocol version`, attack: old(https)},
		{what: "MQTT with TLS: without", want: `^nothing|^15 03`, attack: plain(mqtts)},
		{what: "HTTP with TLS: without", want: `^400|^nothing`, attack: plain(https)},
	}
}
