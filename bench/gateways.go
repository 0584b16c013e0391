package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"
)

// holding tells the process of idle gateways what to do. It is a process of its own,
// since one may have 20,000 files open on some systems, and so that the
// node's memory is the node's.
type holding struct {
	Address string `json:"address"`
	Roll    roll   `json:"roll"`
	From    int    `json:"from"` // the first gateway of the roll
	Count   int    `json:"count"`
}

// held is what it says: once all are connected, and at its end.
type held struct {
	Connected int64 `json:"connected"`
	Pings     int64 `json:"pings_from_the_cloud"`
	Pongs     int64 `json:"pongs_from_the_cloud"`
	Lost      int64 `json:"lost"` // sessions that ended by themselves
}

const (
	dialers = 32
	// perAddress keeps each local address below the 28,000 ports that Linux gives
	// out by default, with room for those that wait to be reused.
	perAddress = 4_500
	// idleBuffer is enough for a ping; a welcome is read in pieces.
	idleBuffer = 256
)

// holdGateways reads a holding from in, connects, says so on out, and keeps the
// sessions until in ends.
func holdGateways(ctx context.Context, in io.Reader, out io.Writer) error {
	var h holding
	commands := json.NewDecoder(in)
	if err := commands.Decode(&h); err != nil {
		return fmt.Errorf("read what to hold: %w", err)
	}
	idle := &idleGateways{}
	defer idle.close()
	if err := idle.connect(ctx, h); err != nil {
		return err
	}
	answers := json.NewEncoder(out)
	if err := answers.Encode(idle.held()); err != nil {
		return err
	}
	var end json.RawMessage
	if err := commands.Decode(&end); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the end of the input: %w", err)
	}
	return answers.Encode(idle.held())
}

// idleGateways are sessions on which nothing but heartbeats goes either way.
type idleGateways struct {
	pings, pongs, lost atomic.Int64
	ended              sync.WaitGroup
	closing            atomic.Bool
	stop               context.CancelFunc

	mu       sync.Mutex // covers what follows
	sessions []*session
}

func (g *idleGateways) held() held {
	g.mu.Lock()
	defer g.mu.Unlock()
	return held{int64(len(g.sessions)), g.pings.Load(), g.pongs.Load(), g.lost.Load()}
}

// connect opens all sessions; they ping from then on, as gateways do.
func (g *idleGateways) connect(ctx context.Context, h holding) error {
	group, dialing := errgroup.WithContext(ctx)
	group.SetLimit(dialers)
	for i := h.From; i < h.From+h.Count; i++ {
		group.Go(func() error {
			c := call{address: h.Address, gateway: h.Roll.id(i), token: h.Roll.token(i), local: net.IPv4(127, 0, 0, byte(2+i/perAddress)), buffer: idleBuffer}
			s, err := c.open(dialing)
			if err == nil {
				g.keep(s)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	ctx, g.stop = context.WithCancel(context.Background())
	g.ended.Go(func() { g.ping(ctx) })
	return nil
}

// keep reads a session to its end.
func (g *idleGateways) keep(s *session) {
	answer := s.conn.PingHandler()
	s.conn.SetPingHandler(func(data string) error {
		g.pings.Add(1)
		return answer(data)
	})
	s.conn.SetPongHandler(func(string) error {
		g.pongs.Add(1)
		return nil
	})
	g.mu.Lock()
	g.sessions = append(g.sessions, s)
	g.mu.Unlock()
	g.ended.Go(func() {
		for {
			if _, _, err := s.conn.NextReader(); err != nil { // windows may come: they are passed over
				if !g.closing.Load() {
					g.lost.Add(1)
				}
				return
			}
		}
	})
}

// ping sends the gateways' own pings, spread over the interval.
func (g *idleGateways) ping(ctx context.Context) {
	every := time.Duration(g.sessions[0].welcome.Heartbeat) * time.Millisecond
	const slices = 100
	for at := 0; ; at = (at + 1) % slices {
		if sleep(ctx, every/slices) != nil {
			return
		}
		for i := at; i < len(g.sessions); i += slices {
			_ = g.sessions[i].conn.WriteControl(websocket.PingMessage, []byte("bench"), time.Now().Add(ackTimeout)) // its reader sees what fails
		}
	}
}

// close ends all sessions and waits. It may be called twice.
func (g *idleGateways) close() {
	g.closing.Store(true)
	if g.stop != nil {
		g.stop()
	}
	g.mu.Lock()
	for _, s := range g.sessions {
		s.conn.Close()
	}
	g.mu.Unlock()
	g.ended.Wait()
}
