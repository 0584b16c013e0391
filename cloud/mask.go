package cloud

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"touchline"
	"touchline/wire"
)

// A Mask replaces what was received of a sensor in a time range: of the
// samples of its gateways, those of its sensor (and metric) with a corrected
// time in its range are hidden, except the ones that it keeps. It is decided
// when samples are read, so it does not matter whether they were recorded
// before the mask or after it, and nothing is ever deleted.
//
// Where several masks cover a sample the one with the highest number decides.
// A mask is never changed; a newer one that revokes it puts it out of force.
type Mask struct {
	Number uint64 `json:"number"` // given by the store, in the order of their commits: 1, 2, 3…

	Gateways []string `json:"gateways"`         // whose samples it covers
	Sensor   string   `json:"sensor"`           //
	Metric   string   `json:"metric,omitempty"` // "": all of the sensor
	From     int64    `json:"from_unix_ns"`     // inclusive
	To       int64    `json:"to_unix_ns"`       // exclusive

	Keep []wire.EpochRanges `json:"keep"` // the samples that stay, by their numbers

	// Revokes is the number of the mask that this one puts out of force; all of
	// the above but Number is empty then.
	Revokes uint64 `json:"revokes,omitempty"`

	By     string    `json:"by"` // who made it
	Reason string    `json:"reason,omitempty"`
	Made   time.Time `json:"made"` // given by the store

	Revoked uint64 `json:"revoked,omitempty"` // the mask that put this one out of force; 0: in force
}

// WholeEpoch are all the numbers that an epoch can have.
func WholeEpoch(epoch touchline.Epoch) wire.EpochRanges {
	return wire.EpochRanges{Epoch: epoch, Ranges: touchline.Ranges{{First: 1, Last: touchline.MaxSeq}}}
}

// Limits of masks. A query has those that concern it in memory, about 400
// bytes each.
const (
	// MaxMasks is how many may be in force in a store: 40 MB in a query about everything.
	// 25 players of 20 clubs who dock after each of 40 matches are 20,000 in a season.
	MaxMasks = 100_000
	// maxMaskGateways, maxMaskEpochs and maxMaskRanges bound one: a venue has
	// some gateways, and a recording was written in some openings of a buffer.
	maxMaskGateways = 256
	maxMaskEpochs   = 256
	maxMaskRanges   = 1024
	maxMaskText     = 500 // bytes of who and why
)

// TooManyMasks says that a store takes no further mask, and what to do.
func TooManyMasks(masks int) error {
	return fmt.Errorf("%d masks are in force, and no more than that may be: `touchline-cloud replace revoke` those whose samples nobody reads any more", masks)
}

// ErrNoMask is in the error where a mask is to be revoked that is not there, or
// out of force already.
var ErrNoMask = errors.New("there is no such mask in force")

// Masks is the record store as late uploads use it.
type Masks interface {
	// AddMask keeps m under the next number and returns it, durable. What m has
	// of Number, Made and Revoked does not count. From then on no query that
	// begins shows what it hides. A gateway that is not registered is an
	// error, and so is the revocation of what is not in force (ErrNoMask).
	AddMask(ctx context.Context, m Mask) (Mask, error)
	// Masks lists the masks in the order of their numbers; of one sensor, unless
	// sensor is "". Revocations have the sensor of what they revoke.
	Masks(ctx context.Context, sensor string) ([]Mask, error)
}

// Check says what is wrong with a mask that is to be added.
func (m *Mask) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, text := range map[string]string{"By": m.By, "Reason": m.Reason} {
		if len(text) > maxMaskText || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			bad("%s is %d bytes long: want text of at most %d", name, len(text), maxMaskText)
		}
	}
	if m.By == "" {
		bad("By is empty: say who makes the mask")
	}
	if m.Revokes != 0 {
		if m.Sensor != "" || m.Metric != "" || len(m.Gateways) > 0 || len(m.Keep) > 0 {
			bad("a revocation has nothing beside the number that it revokes")
		}
		if m.Revokes > math.MaxInt64 {
			bad("mask %d: %w", m.Revokes, ErrNoMask)
		}
		return errors.Join(errs...)
	}
	if len(m.Gateways) == 0 || len(m.Gateways) > maxMaskGateways {
		bad("there are %d gateways: want 1 to %d", len(m.Gateways), maxMaskGateways)
	}
	for i, g := range m.Gateways {
		if err := touchline.CheckGateway(g); err != nil {
			bad("gateway: %w", err)
		}
		if slices.Contains(m.Gateways[:i], g) {
			bad("gateway %s is there twice", g)
		}
	}
	if err := touchline.CheckSensor(m.Sensor); err != nil {
		bad("sensor: %w", err)
	}
	if m.Metric != "" {
		if err := touchline.CheckMetric(m.Metric); err != nil {
			bad("metric: %w", err)
		}
	}
	if m.From >= m.To {
		bad("the range is empty: it begins at %d ns and ends before %d ns", m.From, m.To)
	}
	m.checkKeep(bad)
	return errors.Join(errs...)
}

func (m *Mask) checkKeep(bad func(string, ...any)) {
	if len(m.Keep) == 0 || len(m.Keep) > maxMaskEpochs {
		bad("it keeps samples of %d epochs: want 1 to %d", len(m.Keep), maxMaskEpochs)
		return
	}
	ranges := 0
	for i, k := range m.Keep {
		ranges += len(k.Ranges)
		if slices.ContainsFunc(m.Keep[:i], func(o wire.EpochRanges) bool { return o.Epoch == k.Epoch }) {
			bad("epoch %s is there twice", k.Epoch)
		}
		var canonical touchline.Ranges
		for _, r := range k.Ranges {
			if !r.Valid() {
				bad("epoch %s: numbers %d to %d are out of bounds", k.Epoch, r.First, r.Last)
				return
			}
			canonical.Add(r)
		}
		if len(canonical) == 0 || !slices.Equal(canonical, k.Ranges) {
			bad("epoch %s: want ranges of numbers in order and apart", k.Epoch)
		}
	}
	if ranges > maxMaskRanges {
		bad("it keeps %d ranges of numbers: want at most %d", ranges, maxMaskRanges)
	}
}

// Keeps says whether the sample with this number stays.
func (m *Mask) Keeps(epoch touchline.Epoch, seq uint64) bool {
	for i := range m.Keep {
		if m.Keep[i].Epoch == epoch {
			return m.Keep[i].Ranges.Overlaps(touchline.Range{First: seq, Last: seq})
		}
	}
	return false
}

// Same says whether two masks cover and keep the same.
func (m *Mask) Same(o *Mask) bool {
	sortedKeep := func(keep []wire.EpochRanges) []wire.EpochRanges {
		return slices.SortedFunc(slices.Values(keep), func(a, b wire.EpochRanges) int { return strings.Compare(string(a.Epoch[:]), string(b.Epoch[:])) })
	}
	return m.Sensor == o.Sensor && m.Metric == o.Metric && m.From == o.From && m.To == o.To && m.Revokes == o.Revokes &&
		slices.Equal(slices.Sorted(slices.Values(m.Gateways)), slices.Sorted(slices.Values(o.Gateways))) &&
		slices.EqualFunc(sortedKeep(m.Keep), sortedKeep(o.Keep), func(a, b wire.EpochRanges) bool {
			return a.Epoch == b.Epoch && slices.Equal(a.Ranges, b.Ranges)
		})
}
