package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"touchline"
)

// A Message is one control message. It travels as a JSON object in a text
// frame, with its type in the member "type". Unknown types and members are
// ignored, so that either side can be newer.
type Message interface{ messageType() string }

// Hello is the first message of a session, from the gateway.
type Hello struct {
	Gateway  string `json:"gateway"`
	Software string `json:"software"` // "touchline/0.1.0"
	Epochs   []Held `json:"epochs"`   // those with blocks in the buffer, oldest first
	Clock    string `json:"clock"`    // "unset", "set" or "synchronised"

	// Epoch is that of this opening of the buffer; zero where the gateway does
	// not say. None goes back to an older one, so a cloud that sees it happen
	// knows that two boxes have one identity.
	Epoch        touchline.Epoch `json:"epoch,omitzero"`
	Capabilities []string        `json:"capabilities,omitempty"`
}

// Held says what the gateway's buffer holds of an epoch.
type Held struct {
	Epoch  touchline.Epoch `json:"epoch"`
	Oldest uint64          `json:"oldest"` // lowest number that is still held
	Next   uint64          `json:"next"`   // one above the highest
}

// Welcome is the cloud's answer to hello.
type Welcome struct {
	Store     string        `json:"store"`              // the record store's own id; stays for its lifetime
	Session   uint64        `json:"session"`            // rises with each session of a gateway
	Stored    []EpochRanges `json:"stored"`             // what the store has of the epochs in hello; may be cut short
	Complete  bool          `json:"complete,omitempty"` // it was not cut short: the store has no more of those epochs
	Window    Window        `json:"window"`
	MaxFrame  int           `json:"max_frame"`    // bytes of one binary message, at least MinFrameBytes
	Heartbeat int           `json:"heartbeat_ms"` // interval of pings from both sides
	Time      time.Time     `json:"time"`         // the cloud's clock

	Capabilities []string `json:"capabilities,omitempty"`
}

// EpochRanges is a set of sample numbers of one epoch.
type EpochRanges struct {
	Epoch  touchline.Epoch  `json:"epoch"`
	Ranges touchline.Ranges `json:"ranges"`
}

// Window is how much the gateway may have sent that is not yet accepted.
// Zero in either member is a pause. One block may always be in flight while
// neither is zero.
type Window struct {
	Bytes  int `json:"bytes"`  // of block data
	Blocks int `json:"blocks"` // count
}

// Ack is the cloud's word on what it has. Accepted gives window back; the
// gateway may forget only what is stored. Both are absolute: a repeat says
// nothing new and is no error.
type Ack struct {
	Accepted []EpochRanges `json:"accepted,omitempty"`
	Stored   []EpochRanges `json:"stored,omitempty"`
	Lost     []uint64      `json:"lost,omitempty"`  // ids of lost messages that are recorded
	Clock    []ClockOffset `json:"clock,omitempty"` // of clock messages that are recorded
	Time     time.Time     `json:"time"`
}

// Resend asks for a block again that arrived damaged.
type Resend struct {
	Epoch  touchline.Epoch  `json:"epoch"`
	Ranges touchline.Ranges `json:"ranges"`
}

// NewWindow changes the window.
type NewWindow struct {
	Window Window `json:"window"`
}

// Goaway tells the gateway to end this session and come back.
type Goaway struct {
	Reason         string `json:"reason"` // "drain", "rebalance", "overload"
	ReconnectAfter int    `json:"reconnect_after_ms"`
	Address        string `json:"address,omitempty"` // another URL to use once
}

// Lost announces samples that the cloud will never get, until it is confirmed
// in an Ack. Where the cloud has the samples after all, stored wins.
type Lost struct {
	ID      uint64           `json:"id"` // of this record in the gateway's buffer
	Epoch   touchline.Epoch  `json:"epoch"`
	Ranges  touchline.Ranges `json:"ranges"`
	Cause   string           `json:"cause"`    // "max_bytes", "max_age", "free_reserve", "damage"
	MinTime int64            `json:"min_time"` // ns since the Unix epoch of the oldest sample
	MaxTime int64            `json:"max_time"`
}

// Clock says what the offset of the gateway's clock has been since it was
// switched on, so that what it stamped by a worse one can be corrected. It is
// absolute, and repeated until it is confirmed in an Ack.
type Clock struct {
	ClockOffset
	State string `json:"state"` // "set" or "synchronised"; see touchline.ClockState
}

// A ClockOffset names one clock message.
type ClockOffset struct {
	Boot   touchline.Boot `json:"boot"`
	Offset int64          `json:"offset_ns"` // Unix time less time since power-on
}

// NewClock returns the message that says c.
func NewClock(c touchline.Clock) *Clock {
	return &Clock{ClockOffset: ClockOffset{Boot: c.Boot, Offset: c.Offset}, State: c.State.String()}
}

// Says returns what the message says, or an error for a state that can't
// correct anything.
func (m *Clock) Says() (touchline.Clock, error) {
	c := touchline.Clock{Boot: m.Boot, Offset: m.Offset}
	for _, c.State = range []touchline.ClockState{touchline.ClockSet, touchline.ClockSynchronised} {
		if m.State == c.State.String() {
			return c, nil
		}
	}
	return c, fmt.Errorf("message clock: state %.40q: want %q or %q", m.State, touchline.ClockSet, touchline.ClockSynchronised)
}

func (*Hello) messageType() string     { return "hello" }
func (*Welcome) messageType() string   { return "welcome" }
func (*Ack) messageType() string       { return "ack" }
func (*Resend) messageType() string    { return "resend" }
func (*NewWindow) messageType() string { return "window" }
func (*Goaway) messageType() string    { return "goaway" }
func (*Lost) messageType() string      { return "lost" }
func (*Clock) messageType() string     { return "clock" }

// ErrUnknownMessage is returned by ParseMessage for a type that this version
// does not know. Its receiver ignores the message.
var ErrUnknownMessage = errors.New("unknown message type")

// MarshalMessage returns m as the payload of a text frame.
func MarshalMessage(m Message) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal %s: %w", m.messageType(), err)
	}
	head := `{"type":"` + m.messageType() + `"`
	out := make([]byte, 0, len(head)+len(body)+sealBytes)
	out = append(out, head...)
	if string(body) != "{}" {
		out = append(out, ',')
	}
	return Seal(append(out, body[1:]...)), nil
}

// Seal adds the member with the CRC to the end of a JSON object that has
// members and no space behind it. It may use object's memory.
func Seal(object []byte) []byte {
	open := object[:len(object)-1]
	return fmt.Appendf(open, `%s%08x"}`, sealHead, crc32.Checksum(open, castagnoli))
}

// The last member of a message is its CRC-32C over all bytes before the comma
// in front of it, as eight hexadecimal digits. TCP's own checksum lets one
// damaged segment in some tens of thousands pass, and a bit flipped in the
// ranges of an ack would make the gateway forget what nobody has.
const (
	sealHead  = `,"crc":"`
	sealBytes = len(sealHead) + 8 + len(`"}`)
)

// ErrSeal is wrapped by the errors for a message that was changed on its way.
var ErrSeal = errors.New("CRC does not hold")

// checkSeal says whether a message is as it was sent. One that does not end
// with a CRC was typed by a person, or lost it on its way.
func checkSeal(data []byte) (sealed bool, err error) {
	at := len(data) - sealBytes
	if at < 0 || string(data[at:at+len(sealHead)]) != sealHead || string(data[len(data)-2:]) != `"}` {
		return false, nil
	}
	said, err := strconv.ParseUint(string(data[at+len(sealHead):len(data)-2]), 16, 32)
	if err != nil || uint32(said) != crc32.Checksum(data[:at], castagnoli) {
		return true, fmt.Errorf("message: %w: it was changed on its way", ErrSeal)
	}
	return true, nil
}

// ParseSealed is ParseMessage for whoever acts on a message in a way that
// can't be taken back: one without a CRC is an error.
func ParseSealed(data []byte) (Message, error) {
	if sealed, err := checkSeal(data); err == nil && !sealed {
		return nil, fmt.Errorf("message: %w: it has none at its end", ErrSeal)
	}
	return ParseMessage(data)
}

// ParseMessage reads the payload of a text frame. Where it ends with a CRC,
// that must hold.
func ParseMessage(data []byte) (Message, error) {
	if len(data) > MaxMessageBytes {
		return nil, fmt.Errorf("message has %d bytes: at most %d are allowed", len(data), MaxMessageBytes)
	}
	if _, err := checkSeal(data); err != nil {
		return nil, err
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	var m Message
	switch head.Type {
	case "hello":
		m = &Hello{}
	case "welcome":
		m = &Welcome{}
	case "ack":
		m = &Ack{}
	case "resend":
		m = &Resend{}
	case "window":
		m = &NewWindow{}
	case "goaway":
		m = &Goaway{}
	case "lost":
		m = &Lost{}
	case "clock":
		m = &Clock{}
	default:
		return nil, fmt.Errorf("%w %.40q", ErrUnknownMessage, head.Type)
	}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("message %s: %w", head.Type, err)
	}
	return m, nil
}
