package cloud

import (
	"context"
	"errors"
	"time"

	"touchline"
	"touchline/cloud/tracing"
	"touchline/identity"
	"touchline/wire"
)

// A Recorder is the record store as ingest sees it. Its implementations live
// in packages named for their technology (cloud/sqlite).
//
// Record stores every delivery of batch in one transaction, each (epoch, seq)
// once, and has synced it when it returns nil. The outcomes are in the order
// of the batch. A repeat (same bounds, same CRC) is Stored again and never an
// error; a block that overlaps what is stored without being that repeat, or
// whose epoch belongs to another gateway, is kept aside in the same
// transaction, and is Stored as well (KeptAside says so): there is no refusal
// that could eat data. An error means that nothing is known of the batch; the
// caller offers the same deliveries again. One that wraps ErrUnavailable is the
// store's own trouble; of any other a block of the batch may be the cause, and
// it is looked for. Record is called by one goroutine at a time.
//
// Stored returns which numbers of the given epochs the store has, and of an
// epoch of another gateway those that it keeps aside for this one: all that
// this gateway was told to be stored, and nothing else. A gateway that was
// renamed would send what it keeps at each connection otherwise. Lost records what a gateway announced to be
// lost; a repeat of an id of the same epoch changes nothing.
//
// Clock records what a gateway says of its clock in one of its boots (its
// state is set or synchronised), and has synced it when it returns nil. It
// corrects the samples that the gateway stamped in that boot by a clock that
// was not synchronised (see Correct), whether their blocks are recorded
// already or later. A better state replaces a worse one and never the other
// way round; of equal ones the latest counts. What a block says is not
// changed: a later clock corrects it anew.
//
// Lost and Clock take the number of the session that says so, and change
// nothing where the gateway has begun a newer one, at whatever node: the error
// is ErrOvertaken then. So what counts is what the newest session said, however
// late an older one's message comes. A session of 0 is none: a file that the
// gateway wrote, of which there is no newer one. Blocks have no such fence, and
// need none, since their ranges decide.
type Recorder interface {
	Record(ctx context.Context, batch []Delivery) ([]Outcome, error)
	Stored(ctx context.Context, gateway string, epochs []touchline.Epoch) ([]wire.EpochRanges, error)
	Lost(ctx context.Context, gateway string, session uint64, lost wire.Lost) error
	Clock(ctx context.Context, gateway string, session uint64, clock touchline.Clock) error
}

// ErrOvertaken is wrapped by the errors of a record store for what a session
// says after its gateway has begun a newer one.
var ErrOvertaken = errors.New("a newer session of this gateway took over")

// ErrUnavailable is wrapped by the errors of a Recorder for which no block is
// to blame: no space, an I/O error, a lock, no connection.
var ErrUnavailable = errors.New("record store is unavailable")

// A Delivery is one block as it came from a gateway, its CRC and bounds
// checked. Samples and Block.Data are the caller's again when Record returns;
// the strings in them may be kept.
type Delivery struct {
	Gateway  string // authenticated
	Session  uint64
	Block    wire.Block
	Lane     wire.Lane          // it came in; Backlog for what came in an archive
	Samples  []touchline.Sample // what Block.Data decodes to; nil where it could not be decoded
	Clock    *wire.BlockClock   // as Block.Data has it; nil where it says nothing of it
	Problem  string             // why it could not be decoded; such a block is kept aside
	Received time.Time
	Trace    *tracing.Block // nil: it is not followed

	// Of a delivery that came out of a queue; zero for others.
	Accepted time.Time // when the queue held it, by its server's clock
	Again    bool      // it was given out before
}

// An Outcome says what became of a delivery; its samples are stored in
// every case.
type Outcome struct {
	Repeat    bool // it was stored before
	KeptAside bool // stored as it is, but not among the samples; Reason says why
	Reason    string
}

// Archive is the record store as readers see it.
type Archive interface {
	// Samples calls yield for each sample that q selects and no mask hides (see
	// Mask), in order of time, ties by gateway, epoch and seq. It reads what was stored when it was
	// called, holds no transaction while yield runs for long, and needs
	// memory that does not grow with the result. It ends with yield's
	// error, if any; with one that wraps ErrIncomplete it has yielded all
	// that can be read. yield may keep the record.
	Samples(ctx context.Context, q Query, yield func(Record) error) error
	// Gateways lists the registered gateways by id.
	Gateways(ctx context.Context) ([]Gateway, error)
}

// ErrIncomplete is wrapped by the error of Samples that stands for stored
// blocks which can't be read any more.
var ErrIncomplete = errors.New("samples are incomplete")

// A Query selects samples. Empty strings and nil times select all.
type Query struct {
	Gateway, Sensor, Metric string
	From, To                *int64 // ns since the Unix epoch; From inclusive, To exclusive
	Replaced                bool   // what masks hide is selected too, and Record.ReplacedBy says so
}

// A Record is a sample as the store has it.
type Record struct {
	touchline.Sample // its time corrected
	Clock            Note
	Gateway          string
	Received         int64 // ns since the Unix epoch: when the cloud had its block first
	Epoch            touchline.Epoch
	Seq              uint64
	ReplacedBy       uint64 // the mask that hides it; 0: none
}

// Registry is the record store as the gate keeper sees it.
type Registry interface {
	// GatewayByToken returns the id of the gateway whose token has this
	// SHA-256, or ErrUnknownToken. A gateway added a moment ago by another
	// process is found.
	GatewayByToken(ctx context.Context, sha256 [32]byte) (string, error)
	// ID returns the store's own id, which stays for its lifetime.
	ID() string
	// NewSession returns that id and a session number above all
	// that this gateway had.
	NewSession(ctx context.Context, gateway string) (store string, session uint64, err error)
	// Overtaken returns which of these sessions, by gateway, are not the newest
	// of their gateways any more: those gateways are at another node, or came back
	// to this one. It costs a lookup for each.
	Overtaken(ctx context.Context, sessions map[string]uint64) (gateways []string, err error)
	// GatewayKeys returns the public keys that are registered as this
	// gateway's, none for one that is not known. A key added a moment ago by
	// another process is among them.
	GatewayKeys(ctx context.Context, gateway string) ([]identity.PublicKey, error)
}

// ErrUnknownToken says that no gateway has the token.
var ErrUnknownToken = errors.New("unknown token")

// A Gateway is one gateway as the store knows it.
type Gateway struct {
	ID         string     `json:"id"`
	Added      time.Time  `json:"added"`
	LastStored *time.Time `json:"last_stored,omitempty"` // when a block of it was last stored
	Samples    uint64     `json:"samples"`               // stored, repeats not counted
	Blocks     uint64     `json:"blocks"`
	KeptAside  uint64     `json:"kept_aside"` // blocks
	Lost       uint64     `json:"lost"`       // samples that it announced as lost
	Venue      string     `json:"venue,omitempty"`
	LastSeen   *time.Time `json:"last_seen,omitempty"` // when its newest session began
	Revoked    *time.Time `json:"revoked,omitempty"`
	Cloned     *time.Time `json:"cloned,omitempty"` // when two boxes with its identity were seen last
}
