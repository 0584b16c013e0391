package cloud

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"touchline/cloud/tracing"
	"touchline/wire"
)

// Options are the settings of a Server. None has a magic zero: New refuses
// what is out of bounds and names all of it at once.
type Options struct {
	Listen       string // host:port; port 0 takes a free one
	InsecureRead bool   // readers may come from anywhere, not from this machine alone

	// MaxGateways is how many uplinks may be open at a time. An idle one costs
	// 10 KB, measured (docs/performance.md), a busy one up to MaxFrameBytes more
	// while a frame of it is being read: 1,000 of them 10 MB idle, and 256 MB if
	// each was in the middle of the largest frame at the same moment.
	MaxGateways int

	// WindowBytes and WindowBlocks are what one gateway may have sent that is not
	// stored yet. They bound its throughput: window / (round trip + commit).
	// 1 MiB at 100 ms is 10 MB/s, some millions of samples a second. With many
	// gateways each is offered less, so that all of them fit half the queue.
	WindowBytes, WindowBlocks int

	// MaxFrameBytes is the largest message that a gateway may send.
	MaxFrameBytes int

	// QueueBytes bounds the blocks of all gateways that wait for the record
	// store, those being recorded included. 64 MiB hold 30 million samples at two
	// bytes each. When it is full, connections are not read.
	QueueBytes int

	// AccessFor is how long, while the record store is away and there is a queue,
	// gateways come in by what it said last of their credentials; 0 lets none in.
	AccessFor time.Duration

	// Heartbeat is the interval of pings from both sides. A gateway that was not
	// heard of for two of them is dropped.
	Heartbeat time.Duration

	// Handshakes is how many sessions may begin in a second on this node. Each
	// is a transaction of the record store, a thousandth of a second on an SSD;
	// 500 a second bring 10,000 gateways back in 20 s.
	Handshakes int

	// GatewayHandshakes is how many one gateway may begin in a minute.
	GatewayHandshakes int

	// AddressConnections is how many connections one address (IPv6: one /64) may
	// have open, so that one host can't have all of them. Addresses in TrustedProxies have
	// no such limit.
	AddressConnections int

	// TrustedProxies are believed about whom they forward for (X-Forwarded-For).
	TrustedProxies []netip.Prefix

	// CertFile and KeyFile are the TLS certificate and key, read again when they
	// change; both empty is no TLS. With ClientCA (PEM) a gateway must show a certificate of
	// it, whose common name is its id.
	CertFile, KeyFile, ClientCA string

	// ClientCertHeader is the header in which TrustedProxies hand on the client
	// certificate of the connection that they forward, as URL-escaped PEM; "" is none.
	ClientCertHeader string

	// SpareConnections are those beside MaxGateways: of readers, scrapes, health
	// checks and strangers, and the second one of each gateway without WebSockets.
	SpareConnections int

	// MaxHeaderBytes is the largest header of a request; net/http takes 4 KiB more.
	MaxHeaderBytes int

	Timeouts Timeouts

	// AgentListen is where a load balancer asks how much this node can take
	// (host:port; port 0 takes a free one); "" is nowhere.
	AgentListen string

	// DrainDelay is how long a node that is to stop goes on as before, and only
	// says that it is not ready, so that load balancers notice. Drain is over how
	// long it then sends its gateways away, each once what it has sent is stored.
	// With zero of both it stops at once and closes what is open.
	DrainDelay, Drain time.Duration

	// MaxAge is after how long, give or take a tenth, a gateway is asked to connect
	// anew, so that nodes that were added get their share; 0 is never.
	MaxAge time.Duration

	// ShedAbove is by how many percent a node may have more sessions than the mean
	// of all nodes of its store; above it, it sends gateways to the others, until it
	// has the mean. 0 is never. Less than 5 would follow what comes and goes.
	ShedAbove int

	// Tracer follows blocks; nil follows none. It is the caller's, who closes it after
	// Run has returned.
	Tracer *tracing.Tracer

	// Data is the folder in which the record store or the queue is, and of whose
	// file system /metrics tells; "" where neither is on this machine.
	// StoreUnsynced says that the record store may lose what it calls stored; it is told too.
	Data          string
	StoreUnsynced bool

	// MaxQueries is how many reads of samples may run at a time; each holds
	// about 100 KB and a reader of the record store.
	MaxQueries int

	// MaxViewers is how many may follow samples live at a time, 0 for nobody;
	// each costs at most 3 ms of a second. ViewerSeries is how many series one
	// of them may have: 4,096 are at most 5 MB, and 7 MB where all are texts.
	// LiveLookback is how old the latest values may be that one begins with, 0
	// for none.
	MaxViewers, ViewerSeries int
	LiveLookback             time.Duration

	// Bus carries what is recorded between the nodes of a cluster; nil is none, and
	// viewers see what this node records.
	Bus Bus

	// Rollups says what keeping rows of seconds and minutes has come to, for
	// /metrics; nil where this process keeps none.
	Rollups func() RollupStats
}

// Timeouts are how long the other side of a connection may take, each for
// something that was begun. All are required.
type Timeouts struct {
	Login   time.Duration // for a stranger's request to be whole, TLS included
	Hello   time.Duration // from the upgrade to the hello
	Frames  time.Duration // for the body of a POST of frames
	Archive time.Duration // for that of a segment of an archive
	Write   time.Duration // for a gateway to take one message
	Answer  time.Duration // for a reader to take 32 KiB of an answer
	Idle    time.Duration // from an answer to the next request
}

// maxTimeout bounds each of them: beyond it nobody waits any more.
const maxTimeout = 10 * time.Minute

func (t *Timeouts) all() map[string]time.Duration {
	return map[string]time.Duration{"Login": t.Login, "Hello": t.Hello, "Frames": t.Frames, "Archive": t.Archive, "Write": t.Write,
		"Answer": t.Answer, "Idle": t.Idle}
}

// Bounds of the options. A gateway's acknowledgements must fit one control
// message: 1,024 blocks, each of an epoch of its own, are 1,024 × 100 bytes × 2
// lists = 200 KB of MaxMessageBytes (256 KiB).
const (
	maxWindowBlocks = 1024
	minHeartbeat    = 100 * time.Millisecond
	maxHeartbeat    = 10 * time.Minute
	minHeaderBytes  = 4 << 10 // a signed token has 600 bytes, and a proxy adds its own
	maxDrainDelay   = 10 * time.Minute
	maxDrain        = 24 * time.Hour
	maxMaxAge       = 365 * 24 * time.Hour
	maxLookback     = time.Hour
	minShedAbove    = 5
	maxShedAbove    = 1000
	maxAccessFor    = 7 * 24 * time.Hour
)

func (o *Options) validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	_, _, err := net.SplitHostPort(o.Listen)
	need(err == nil, "Listen is %q: want host:port, such as 127.0.0.1:8090", o.Listen)
	need(o.MaxGateways >= 1 && o.MaxGateways <= 100_000, "MaxGateways is %d: want 1 to 100000", o.MaxGateways)
	need(o.WindowBytes >= wire.MaxBlockBytes && o.WindowBytes <= o.QueueBytes,
		"WindowBytes is %d: want %d (one block) to QueueBytes (%d)", o.WindowBytes, wire.MaxBlockBytes, o.QueueBytes)
	need(o.WindowBlocks >= 1 && o.WindowBlocks <= maxWindowBlocks, "WindowBlocks is %d: want 1 to %d", o.WindowBlocks, maxWindowBlocks)
	need(o.MaxFrameBytes >= wire.MinFrameBytes && o.MaxFrameBytes <= 16<<20,
		"MaxFrameBytes is %d: want %d to %d", o.MaxFrameBytes, wire.MinFrameBytes, 16<<20)
	need(o.QueueBytes >= 1<<20, "QueueBytes is %d: want at least %d", o.QueueBytes, 1<<20)
	need(o.Heartbeat >= minHeartbeat && o.Heartbeat <= maxHeartbeat, "Heartbeat is %s: want %s to %s", o.Heartbeat, minHeartbeat, maxHeartbeat)
	need(o.Handshakes >= 1 && o.Handshakes <= 100_000, "Handshakes is %d: want 1 to 100000", o.Handshakes)
	need(o.GatewayHandshakes >= 1 && o.GatewayHandshakes <= 1_000_000, "GatewayHandshakes is %d: want 1 to 1000000", o.GatewayHandshakes)
	need(o.AddressConnections >= 1, "AddressConnections is %d: want at least 1", o.AddressConnections)
	need((o.CertFile == "") == (o.KeyFile == ""), "CertFile and KeyFile: want both or none")
	need(o.ClientCA == "" || o.CertFile != "" || o.ClientCertHeader != "", "ClientCA: want CertFile and KeyFile, or ClientCertHeader too")
	need(o.ClientCertHeader == "" || o.ClientCA != "" && len(o.TrustedProxies) > 0, "ClientCertHeader: want ClientCA and TrustedProxies too")
	err = checkHeaderName(o.ClientCertHeader)
	need(err == nil, "ClientCertHeader: %v", err)
	if o.AgentListen != "" {
		_, _, err := net.SplitHostPort(o.AgentListen)
		need(err == nil, "AgentListen is %q: want host:port, such as 127.0.0.1:9777, or nothing", o.AgentListen)
	}
	need(o.DrainDelay >= 0 && o.DrainDelay <= maxDrainDelay, "DrainDelay is %s: want 0s to %s", o.DrainDelay, maxDrainDelay)
	need(o.Drain >= 0 && o.Drain <= maxDrain, "Drain is %s: want 0s to %s", o.Drain, maxDrain)
	need(o.MaxAge >= 0 && o.MaxAge <= maxMaxAge, "MaxAge is %s: want 0s to %s", o.MaxAge, maxMaxAge)
	need(o.ShedAbove == 0 || o.ShedAbove >= minShedAbove && o.ShedAbove <= maxShedAbove, "ShedAbove is %d: want 0, or %d to %d", o.ShedAbove, minShedAbove, maxShedAbove)
	need(o.AccessFor >= 0 && o.AccessFor <= maxAccessFor, "AccessFor is %s: want 0s to %s", o.AccessFor, maxAccessFor)
	need(o.MaxQueries >= 1 && o.MaxQueries <= 1024, "MaxQueries is %d: want 1 to 1024", o.MaxQueries)
	need(o.SpareConnections >= 1 && o.SpareConnections <= 100_000, "SpareConnections is %d: want 1 to 100000", o.SpareConnections)
	need(o.MaxHeaderBytes >= minHeaderBytes && o.MaxHeaderBytes <= 1<<20, "MaxHeaderBytes is %d: want %d to %d", o.MaxHeaderBytes, minHeaderBytes, 1<<20)
	for name, t := range o.Timeouts.all() {
		need(t > 0 && t <= maxTimeout, "Timeouts.%s is %s: want at most %s", name, t, maxTimeout)
	}
	need(o.MaxViewers >= 0 && o.MaxViewers <= 10_000, "MaxViewers is %d: want 0 to 10000", o.MaxViewers)
	need(o.MaxViewers == 0 || o.ViewerSeries >= 1 && o.ViewerSeries <= 1_000_000, "ViewerSeries is %d: want 1 to 1000000", o.ViewerSeries)
	need(o.LiveLookback >= 0 && o.LiveLookback <= maxLookback, "LiveLookback is %s: want 0 to %s", o.LiveLookback, maxLookback)
	return errors.Join(errs...)
}

// timing holds the waits that are no settings: they are this side's own, or
// follow from the protocol. They are values of a Server, not constants, so that
// tests need not sit them out.
type timing struct {
	ask      time.Duration // for the record store to answer a handshake
	linger   time.Duration // for the other side's end of a close
	shutdown time.Duration // for each stage of stopping
	retryMin time.Duration // before a batch that failed is recorded again; doubles
	retryMax time.Duration
	poll     time.Duration // how much longer than a WebSocket a link over HTTP may be silent
	access   time.Duration // between looks at who may still speak
	announce time.Duration // between two times that this node says how it is
	shed     time.Duration // between looks whether this node has too much
	owner    time.Duration // between looks at whose gateways are at another node
	look     time.Duration // between looks at how long blocks wait to be stored
	lags     time.Duration // that the oldest of them waits while the store lags behind
	stands   time.Duration // and while gateways pause
	leave    time.Duration // from a goaway to the end of a session whose gateway stays
	reask    time.Duration // until the store is asked for what is accepted; doubles
	reaskMax time.Duration
}

var defaultTiming = timing{
	ask:      10 * time.Second,
	linger:   2 * time.Second,
	shutdown: 5 * time.Second,
	retryMin: 50 * time.Millisecond,
	retryMax: 5 * time.Second,
	poll:     25 * time.Second, // its gateway may be between a poll that got lost and the next one
	access:   time.Second,      // a revoked gateway is gone after two, with its close frame after four
	announce: NodeInterval,
	shed:     shedTick,
	owner:    500 * time.Millisecond, // so that a session learns within a second that its gateway moved
	look:     time.Second,
	lags:     2 * time.Second,  // a transaction takes some 10 ms
	stands:   pausesAfter,      // a gateway gives a block 30 s, and a pause stops its clock
	leave:    10 * time.Second, // gateways wait 5 s for what is in flight; twice that
	reask:    5 * time.Second,  // a notice takes milliseconds
	reaskMax: time.Minute,      // behind a store that was away, one question a minute and gateway
}
