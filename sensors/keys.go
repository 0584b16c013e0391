package sensors

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"touchline"
)

// Names of messages. A sample that has a time of its own is told from its
// repeat by what it is. One that the gateway stamps is not: its repeat gets
// another time. It needs the name that its sender gave to the message: the
// Idempotency-Key of a POST, or client and packet id of an MQTT PUBLISH.
//
// A packet id is a poor name, since it is used again: a client that always
// takes the lowest free one gives the same to all its messages, a heart rate
// that does not change is the same message each time, and one that was lost
// on its way and comes again, with DUP set, looks just like a repeat of the one
// before. To drop it would be a loss, and that is worse than storing a sample
// twice. So an id counts as a name only where it is known that its client
// counts, and so comes to the same id 65,535 messages later; only if DUP is set
// and topic and payload are the same; only within the window of repeats; only
// in a session that was resumed; and any PUBLISH without DUP takes the id over.

const (
	// lowestFree is above every id of a client that takes the lowest free
	// one, unless it has more than this in flight; the broker asks MQTT 5
	// clients not to.
	lowestFree = 1024
	// countingIDs in a row prove that a client counts. One that takes the
	// lowest free id counts too as long as it has ever more in flight: what
	// it queued while it was out of reach comes as 1, 2, 3 … to as many as it
	// had, and the next one, lost on its way, comes again as a repeat of 1.
	countingIDs = lowestFree
	// skippedIDs may be left out in between: those of other packets.
	skippedIDs = 64
)

// A naming watches the packet ids of one client's new messages.
type naming struct {
	last   uint16
	run    uint16 // ids in a row that were counted
	strays bool   // an id came twice, or went back, and not enough in a row since
}

// names says whether a packet id names its message. Ids of repeats prove
// nothing, and are not to be counted.
func (n *naming) names(id uint16, dup bool) bool {
	if !dup {
		step := (int(id) - int(n.last) + 65535) % 65535 // 1 follows 65,535
		switch {
		case n.last == 0:
		case step == 0 || step > 1<<15:
			n.run, n.strays = 0, true
		case step > skippedIDs:
			n.run = 0
		case n.run < countingIDs:
			n.run++
		default:
			n.strays = false
		}
		n.last = id
	}
	return n.run >= countingIDs || id > lowestFree && !n.strays
}

// publishKey returns the key of an MQTT message. base is the digest of who
// sends it; the id is laid over it, which makes no two the same.
func publishKey(base touchline.Digest, id uint16, topic string, payload []byte) touchline.Key {
	key := touchline.Key{ID: base, Body: touchline.DigestOf([]byte(topic), payload)}
	key.ID[len(key.ID)-2] ^= byte(id >> 8)
	key.ID[len(key.ID)-1] ^= byte(id)
	return key
}

// needsKey says whether any of the samples from first on can't be told from
// its repeat otherwise.
func (b *load) needsKey(first int) bool {
	return slices.ContainsFunc(b.samples[first:], func(s touchline.Sample) bool { return s.Stamped })
}

// addKey names the samples from first on.
func (b *load) addKey(key touchline.Key, first int) {
	key.First, key.Count = first, len(b.samples)-first
	b.keys = append(b.keys, key)
}

// maxKeyBytes bounds an Idempotency-Key; a UUID has 36.
const maxKeyBytes = 255

var errIdempotencyKey = errors.New(`want one string of 1 to 255 printable ASCII characters, such as "8e03978e-40d5-43dd-bc93-6894a57f9324"`)

// idempotencyKey reads the header (draft-ietf-httpapi-idempotency-key-header,
// a string of RFC 9651, section 3.3.3). Many clients leave out the quotes, so
// it may come without. It returns "" where there is none.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	if len(values) > 1 {
		return "", errIdempotencyKey
	}
	text := strings.Trim(values[0], " ")
	quoted, ok := strings.CutPrefix(text, `"`)
	if !ok {
		if text == "" || len(text) > maxKeyBytes || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`",;\`, r) }) {
			return "", errIdempotencyKey
		}
		return text, nil
	}
	var key strings.Builder
	for i := 0; i < len(quoted); i++ {
		c := quoted[i]
		if c == '\\' {
			if i++; i == len(quoted) || quoted[i] != '"' && quoted[i] != '\\' {
				return "", errIdempotencyKey
			}
			c = quoted[i]
		} else if c == '"' {
			rest := strings.TrimLeft(quoted[i+1:], " ")
			if key.Len() == 0 || key.Len() > maxKeyBytes || rest != "" && rest[0] != ';' { // parameters mean nothing here
				return "", errIdempotencyKey
			}
			return key.String(), nil
		}
		if c < ' ' || c > '~' {
			return "", errIdempotencyKey
		}
		key.WriteByte(c)
	}
	return "", errIdempotencyKey
}

// sender names who sends a request, so that nobody is answered by another
// one's Idempotency-Key. All that show no key are one.
func (g *guest) sender() string {
	if g.login.Sensor == "" {
		return "anonymous"
	}
	return "sensor " + g.login.Sensor
}
