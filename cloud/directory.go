package cloud

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"sync"
	"time"

	"touchline"
)

// A Directory is the record store as nodes see one another in it. What it says
// steers load and informs people; nothing that has to be true rests on it, so a
// power cut may take back what was announced.
type Directory interface {
	// Announce puts what a node says of itself in place of what it said before,
	// forgets nodes that nobody has heard of for NodeForgotten, former lives of
	// this one, and what a clock that was set back has left in the future, and
	// returns all that are left, by name.
	Announce(ctx context.Context, n Node) ([]Sighting, error)
	// Nodes returns what Announce does, and changes nothing.
	Nodes(ctx context.Context) ([]Sighting, error)
	// Withdraw forgets a node, which is about to end. One that is not known is no
	// error.
	Withdraw(ctx context.Context, id string) error
}

// A Node is what a node says of itself. Nodes of other versions read it: fields
// are added, and never change their meaning.
type Node struct {
	ID               string    `json:"id"`   // drawn at each start
	Name             string    `json:"name"` // the machine's name and the address; at most maxNodeName bytes
	Version          string    `json:"version"`
	Started          time.Time `json:"started"`
	Sessions         int       `json:"sessions"`
	MaxSessions      int       `json:"max_sessions"`
	SamplesPerSecond float64   `json:"samples_per_second"` // stored, repeats not counted
	BytesPerSecond   float64   `json:"bytes_per_second"`   // of block frames, as they arrived
	LagSeconds       float64   `json:"lag_seconds"`        // how long the oldest block has waited to be stored
	Load             float64   `json:"load"`               // Stats.Load
	Draining         bool      `json:"draining"`

	// Shed is how many gateways it has sent away lately, for balance: they may
	// not be counted yet where they went.
	Shed int `json:"shed"`
}

// A Sighting is a node, and how far from now it said so by the store's clock,
// which may have been set back since.
type Sighting struct {
	Node
	Age time.Duration
}

const (
	// NodeInterval is how often a node writes its row: a transaction of a
	// millisecond. Over SQLite, which syncs it, that is 17,000 a day.
	NodeInterval = 5 * time.Second

	// NodeLost is the age from which a node is taken for lost: it has missed
	// three times.
	NodeLost = 3 * NodeInterval

	// NodeForgotten is the age at which its row goes.
	NodeForgotten = time.Hour

	// MaxNodes bounds the list. It is far above what one store can bear.
	MaxNodes = 1000

	maxNodeName = 255
)

// Lost says whether the node was not heard of for so long that others count it
// out.
func (s *Sighting) Lost() bool { return s.Age > NodeLost }

// State is the node's state in a word: ready, draining or lost.
func (s *Sighting) State() string {
	switch {
	case s.Lost():
		return "lost"
	case s.Draining:
		return "draining"
	}
	return "ready"
}

// An announcer keeps a node's row in the store, and has the list of nodes as it
// was at the last time that worked.
type announcer struct {
	server *Server
	id     string
	name   string
	began  time.Time
	well   bool

	// What the counters were at last, for rates.
	counted        time.Time
	samples, bytes uint64

	mu   sync.Mutex // covers what follows
	list []Sighting
	at   time.Time // when it was read
}

func newAnnouncer(s *Server) *announcer {
	var id [8]byte
	_, _ = rand.Read(id[:]) // documented never to fail
	return &announcer{server: s, id: hex.EncodeToString(id[:]), well: true}
}

// run announces this node until stop is done. A store that does not answer holds
// up nothing else.
func (a *announcer) run(stop context.Context) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	a.name = fmt.Sprintf("%.*s", maxNodeName, host+" "+a.server.Addr().String())
	a.began = time.Now()
	a.counted = a.began
	ticker := time.NewTicker(a.server.ingest.timing.announce)
	defer ticker.Stop()
	for {
		a.announce(stop)
		select {
		case <-stop.Done():
			return
		case <-ticker.C:
		}
	}
}

func (a *announcer) announce(stop context.Context) {
	ctx, cancel := context.WithTimeout(stop, a.server.ingest.timing.announce)
	defer cancel()
	list, err := a.server.store.Announce(ctx, a.self(time.Now()))
	if err != nil {
		if a.well && stop.Err() == nil {
			a.server.log.Warn("announce this node to the others; it is tried again", "error", err)
		}
		a.well = stop.Err() != nil
		return
	}
	a.well = true
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list, a.at = list, time.Now()
}

// self is what this node says of itself. Only run calls it.
func (a *announcer) self(now time.Time) Node {
	st := a.server.Stats()
	n := Node{
		ID: a.id, Name: a.name, Version: touchline.Version, Started: a.began.UTC().Truncate(time.Second), Sessions: st.Connections, MaxSessions: st.MaxConnections,
		LagSeconds: st.Lag.Seconds(), Load: st.Load(), Draining: st.Draining, Shed: a.server.shedder.lately(now),
	}
	if d := now.Sub(a.counted).Seconds(); d > 0 {
		n.SamplesPerSecond = float64(st.SamplesStored-a.samples) / d
		n.BytesPerSecond = float64(st.FrameBytes-a.bytes) / d
		a.counted, a.samples, a.bytes = now, st.SamplesStored, st.FrameBytes
	}
	return n
}

// peers returns the other nodes that take gateways, as far as is known now.
func (a *announcer) peers(now time.Time) (list []Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.list {
		s.Age += now.Sub(a.at)
		if s.ID != a.id && s.State() == "ready" {
			list = append(list, s.Node)
		}
	}
	return list
}

// withdrawPatience is how long a store that is away may hold up the end of a node.
const withdrawPatience = 2 * time.Second

// withdraw takes the row away, so that the others need not wait until it is old.
func (a *announcer) withdraw() {
	ctx, cancel := context.WithTimeout(context.Background(), withdrawPatience)
	defer cancel()
	if err := a.server.store.Withdraw(ctx, a.id); err != nil {
		a.server.log.Debug("withdraw this node", "error", err)
	}
}
