package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// mosquittoSite is Debian's mosquitto with a bridge to a second one, where
// the bench subscribes and counts. Nothing that they acknowledge is synced:
// with persistence on, mosquitto holds its messages in memory and saves them
// every half an hour, and when it ends.
type mosquittoSite struct {
	program string
	dir     string

	edge, upstream string // addresses
	gateway, cloud *process
	counter        *subscriber
}

// Limits that would make mosquitto drop messages are off, as they are in no
// gateway that must not lose any.
const mosquittoCommon = `listener %s 127.0.0.1
allow_anonymous true
user root
persistence true
persistence_location %s/
max_queued_messages 0
max_inflight_messages 0
max_connections -1
log_dest stderr
log_type error
log_type warning
`

const mosquittoBridge = `connection up
address %s
topic sensors/# out 1
clientid edge1
cleansession false
notifications false
try_private false
restart_timeout 1
keepalive_interval 60
`

func newMosquittoSite(dir string) (*mosquittoSite, error) {
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		const debian = "/usr/sbin/mosquitto" // not in every user's PATH
		if _, err := os.Stat(debian); err != nil {
			return nil, errors.New("mosquitto is not installed (apt-get install mosquitto)")
		}
		program = debian
	}
	s := &mosquittoSite{program: program, dir: dir}
	var errs [2]error
	s.edge, errs[0] = freeAddress()
	s.upstream, errs[1] = freeAddress()
	return s, errors.Join(errs[:]...)
}

func (s *mosquittoSite) Address() string                      { return s.edge }
func (s *mosquittoSite) Processes() (gateway, cloud *process) { return s.gateway, s.cloud }
func (s *mosquittoSite) BufferDir() string                    { return filepath.Join(s.dir, "edge") }

func (s *mosquittoSite) config(name, address, more string) (string, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	data := filepath.Join(s.dir, name)
	file := data + ".conf"
	return file, errors.Join(
		os.MkdirAll(data, 0o700),
		os.WriteFile(file, []byte(fmt.Sprintf(mosquittoCommon, port, data)+more), 0o600),
	)
}

func (s *mosquittoSite) Start(ctx context.Context) error {
	s.counter = newSubscriber(s.upstream)
	if err := s.StartCloud(ctx); err != nil {
		return err
	}
	config, err := s.config("edge", s.edge, fmt.Sprintf(mosquittoBridge, s.upstream))
	if err != nil {
		return err
	}
	if s.gateway, err = startProcess(s.dir, "mosquitto-edge", s.program, "-c", config); err != nil {
		return err
	}
	if err := until(ctx, s.gateway, "did not listen", func() error { return listening(s.edge) }); err != nil {
		return err
	}
	return s.waitBridge(ctx)
}

// waitBridge publishes one message at the edge until one arrives.
func (s *mosquittoSite) waitBridge(ctx context.Context) error {
	conn, err := dialMQTT(ctx, s.edge, "bench-probe", true)
	if err != nil {
		return err
	}
	defer conn.Close()
	before, _ := s.counter.counts()
	id := uint16(0)
	err = until(ctx, s.gateway, "bridged nothing", func() error {
		if now, _ := s.counter.counts(); now > before {
			return nil
		}
		id++
		payload := fmt.Appendf(nil, `%s%d}`, timePrefix, time.Now().UnixNano())
		if _, err := conn.Write(appendPublish(nil, "sensors/probe", id, payload)); err != nil {
			return err
		}
		return errors.New("no message has arrived")
	})
	if err != nil {
		return err
	}
	return s.counter.forget(ctx)
}

func (s *mosquittoSite) StartCloud(ctx context.Context) error {
	config, err := s.config("upstream", s.upstream, "")
	if err != nil {
		return err
	}
	if s.cloud, err = startProcess(s.dir, "mosquitto-upstream", s.program, "-c", config); err != nil {
		return err
	}
	if err := until(ctx, s.cloud, "did not listen", func() error { return listening(s.upstream) }); err != nil {
		return err
	}
	return s.counter.connect(ctx)
}

func (s *mosquittoSite) StopCloud() {
	s.counter.close()
	s.cloud.stop()
}

func (s *mosquittoSite) Stop() {
	if s.counter != nil {
		s.counter.close()
	}
	s.gateway.stop()
	s.cloud.stop()
}

func (s *mosquittoSite) Mark(context.Context) (mark, error) {
	m := mark{commits: math.NaN()}
	m.stored, _ = s.counter.counts()
	m.ages = s.counter.ages()
	m.wireBytes = s.counter.publishBytes()
	return m, m.addProcesses(s.gateway, s.cloud)
}

func (s *mosquittoSite) Stored(context.Context) (float64, error) {
	messages, err := s.counter.counts()
	return messages, err
}

// subscriber counts what arrives at the second broker. Its session is
// persistent: what comes while it is away waits.
type subscriber struct {
	address string
	done    chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	conn    net.Conn
	n       float64
	bytes   float64 // of the PUBLISH packets, as the bridge sends them too
	age     histogram
	err     error
	closing bool
}

func newSubscriber(address string) *subscriber { return &subscriber{address: address} }

func (s *subscriber) connect(ctx context.Context) error {
	conn, err := dialMQTT(ctx, s.address, "bench-counter", false)
	if err != nil {
		return fmt.Errorf("connect counter: %w", err)
	}
	if _, err := conn.Write(appendSubscribe(nil, 1, "sensors/#")); err != nil {
		conn.Close()
		return fmt.Errorf("subscribe counter: %w", err)
	}
	s.mu.Lock()
	s.conn, s.err, s.closing = conn, nil, false
	s.mu.Unlock()
	subscribed := make(chan struct{})
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		err := s.read(conn, subscribed)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.closing {
			s.err = fmt.Errorf("counter: %w", err)
		}
	}()
	select {
	case <-subscribed:
		return nil
	case <-s.done:
		return errors.New("counter: the broker closed the connection before it confirmed the subscription")
	case <-ctx.Done():
		s.close()
		return context.Cause(ctx)
	}
}

// close ends the connection and waits for the reader. It may be called twice.
func (s *subscriber) close() {
	s.mu.Lock()
	s.closing = true
	conn := s.conn
	s.mu.Unlock()
	if conn != nil {
		conn.Close()
		<-s.done
	}
}

// forget starts counting from nothing, when no message has come for a while:
// the probes that found the bridge do not count.
func (s *subscriber) forget(ctx context.Context) error {
	for last := -1.0; ; {
		n, err := s.counts()
		if err != nil {
			return err
		}
		if n == last {
			break
		}
		last = n
		if err := sleep(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n, s.bytes, s.age = 0, 0, histogram{}
	return nil
}

func (s *subscriber) counts() (messages float64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n, s.err
}

func (s *subscriber) ages() buckets {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.age.cumulative()
}

func (s *subscriber) publishBytes() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// read counts, and acknowledges all that one read brought in one write.
func (s *subscriber) read(conn net.Conn, subscribed chan<- struct{}) error {
	in := make([]byte, 0, 2*maxPacketBytes)
	var out []byte
	for {
		n, err := conn.Read(in[len(in):cap(in)])
		if err != nil {
			return err
		}
		in = in[:len(in)+n]
		now := time.Now().UnixNano()
		rest := in
		out = out[:0]
		s.mu.Lock()
		for err == nil {
			var kind byte
			var body, after []byte
			if kind, body, after, err = cutPacket(rest); err != nil {
				break
			}
			switch kind {
			case typeSuback:
				close(subscribed)
			case typePublish:
				out, err = s.take(out, body, len(rest)-len(after), now)
			}
			rest = after
		}
		s.mu.Unlock()
		if !errors.Is(err, errShort) {
			return err
		}
		in = in[:copy(in, rest)]
		if _, err := conn.Write(out); err != nil {
			return err
		}
		if n < gatherBytes {
			time.Sleep(gatherTime)
		}
	}
}

// gatherBytes is what makes reading at once worth while. Where less has come,
// more is waited for (see gatherTime), which adds that to the latencies of
// mosquitto.
const gatherBytes = 4 << 10

// take counts one message and appends its acknowledgement. It is called with
// the lock held.
func (s *subscriber) take(out, body []byte, packetBytes int, nowNs int64) ([]byte, error) {
	id, payload, err := cutPublish(body)
	if err != nil {
		return out, err
	}
	sentNs, err := sampleTime(payload)
	if err != nil {
		return out, err
	}
	s.n++
	s.bytes += float64(packetBytes)
	s.age.add((nowNs - sentNs) / 1000)
	return appendPuback(out, id), nil
}
