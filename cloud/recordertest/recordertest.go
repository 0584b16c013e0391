// Package recordertest holds every record store to what cloud.Recorder,
// cloud.Archive, cloud.Registry, cloud.Access and cloud.Directory promise. A store's own tests call Run; a
// store that passes may stand behind ingest.
package recordertest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/rollup"
	"touchline/identity"
	"touchline/wire"
)

// A Store is a record store with what its tests need beside the five
// interfaces.
type Store interface {
	cloud.Recorder
	cloud.Archive
	cloud.Registry
	cloud.Access
	cloud.Directory
	cloud.Masks
	cloud.Rollups
	rollup.Store
	// AddGateway registers a gateway; an id or token that is there is an
	// error.
	AddGateway(ctx context.Context, id string, tokenHash [32]byte) error
	// AddGatewayKey registers a public key of a gateway. One that is there is
	// no error; one of another gateway is.
	AddGatewayKey(ctx context.Context, gateway string, key identity.PublicKey) error
	// RemoveGatewayKey takes a key away for good, named by its thumbprint.
	// cloud.ErrUnknownKey is in the error where the gateway has no such key,
	// cloud.ErrLastKey where it has no other that counts.
	RemoveGatewayKey(ctx context.Context, gateway, thumbprint string) error
	// RevokeGateway takes a gateway's token and keys away. One that is unknown
	// is an error, one that is revoked is none.
	RevokeGateway(ctx context.Context, gateway string) error
	// AddClaim keeps a claim code.
	AddClaim(ctx context.Context, c cloud.Claim) error
	// AddAPIKey keeps an API key; an id or name that is there is an error.
	AddAPIKey(ctx context.Context, k cloud.APIKey) error
	// RevokeAPIKey takes an API key away, by name or id; cloud.ErrUnknownKey is
	// in the error where there is none.
	RevokeAPIKey(ctx context.Context, name string) error
	Close() error
}

// A Faulty store can be made to fail. Run tests more of a store that is one.
type Faulty interface {
	// FailNextCommit makes the next commit of a Record fail after all was
	// written.
	FailNextCommit(t *testing.T)
}

// Run tests the store that open opens. Within one test (by t.Name) open must
// open the same data each time, and in another test other, empty data. Where
// it is called while a store of the test is open, the two must be to one
// another as those of two processes. Run closes what it opened.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for _, group := range []map[string]func(*fixture){
		recordTests, storedTests, lostTests, clockTests, queryTests, registryTests, keyTests, crowdTests,
		enrolTests, rollTests, accessTests, ownerTests, nodeTests, maskTests, rollupTests, rollupClockTests, rollupTrimTests,
	} {
		names := make([]string, 0, len(group))
		for name := range group {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				f := &fixture{T: t, open: open}
				f.reopen()
				defer f.end()
				group[name](f)
			})
		}
	}
}

// A fixture is one test's store, with the steps that tests are made of. Each
// step fails the test where it does not go as the step's name says.
type fixture struct {
	*testing.T
	open   func(*testing.T) Store
	store  Store
	others []Store // of second
}

// end closes all that is open. It is no Cleanup, before which the test's
// context ends.
func (f *fixture) end() {
	f.Helper()
	for _, other := range f.others {
		if err := other.Close(); err != nil {
			f.Errorf("Close of a second: %v", err)
		}
	}
	f.close()
}

func (f *fixture) reopen() {
	f.Helper()
	f.close()
	f.store = f.open(f.T)
}

func (f *fixture) close() {
	f.Helper()
	if f.store == nil {
		return
	}
	if err := f.store.Close(); err != nil {
		f.Fatalf("Close: %v", err)
	}
	if err := f.store.Close(); err != nil {
		f.Fatalf("second Close: %v", err)
	}
	f.store = nil
}

// second opens the store once more, as another process would, until the test
// ends.
func (f *fixture) second() Store {
	f.Helper()
	other := f.open(f.T)
	f.others = append(f.others, other)
	return other
}

func token(id string) [32]byte { return sha256.Sum256([]byte("token of " + id)) }

func (f *fixture) addGateways(ids ...string) {
	f.Helper()
	for _, id := range ids {
		if err := f.store.AddGateway(f.Context(), id, token(id)); err != nil {
			f.Fatalf("AddGateway(%s): %v", id, err)
		}
	}
}

// record records the batch and wants these outcomes (reasons apart; a block
// kept aside must have one).
func (f *fixture) record(batch []cloud.Delivery, want ...cloud.Outcome) []cloud.Outcome {
	f.Helper()
	got, err := f.store.Record(f.Context(), batch)
	if err != nil {
		f.Fatalf("Record: %v", err)
	}
	if len(got) != len(batch) {
		f.Fatalf("Record returned %d outcomes for %d blocks", len(got), len(batch))
	}
	for i, w := range want {
		if g := got[i]; g.Repeat != w.Repeat || g.KeptAside != w.KeptAside || g.KeptAside != (g.Reason != "") {
			f.Fatalf("outcome %d is %+v, want %+v (and a reason if and only if kept aside)", i, g, w)
		}
	}
	return got
}

// fails wants Record to fail.
func (f *fixture) fails(ctx context.Context, batch []cloud.Delivery) {
	f.Helper()
	if outcomes, err := f.store.Record(ctx, batch); err == nil {
		f.Fatalf("Record returned %+v, want an error", outcomes)
	} else if outcomes != nil {
		f.Fatalf("Record returned outcomes %+v with its error", outcomes)
	}
}

func (f *fixture) query(q cloud.Query) []cloud.Record {
	f.Helper()
	var got []cloud.Record
	err := f.store.Samples(f.Context(), q, func(r cloud.Record) error {
		got = append(got, r)
		return nil
	})
	if err != nil {
		f.Fatalf("Samples: %v", err)
	}
	return got
}

// has wants the store to have exactly the samples of these deliveries.
func (f *fixture) has(deliveries ...cloud.Delivery) {
	f.Helper()
	f.selects(cloud.Query{}, Records(deliveries...))
}

func (f *fixture) selects(q cloud.Query, want []cloud.Record) {
	f.Helper()
	got := f.query(q)
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			f.Fatalf("record %d is\n%+v, want\n%+v", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		f.Fatalf("Samples yielded %d records, want %d", len(got), len(want))
	}
}

// stored wants the gateway to have exactly these numbers of the epoch stored.
func (f *fixture) stored(gateway string, epoch touchline.Epoch, want ...touchline.Range) {
	f.Helper()
	got, err := f.store.Stored(f.Context(), gateway, []touchline.Epoch{epoch})
	if err != nil {
		f.Fatalf("Stored: %v", err)
	}
	var ranges touchline.Ranges
	for _, g := range got {
		if g.Epoch != epoch {
			f.Fatalf("Stored answered for epoch %s, asked for %s", g.Epoch, epoch)
		}
		ranges.AddAll(g.Ranges)
	}
	if !slices.Equal(ranges, touchline.Ranges(want)) {
		f.Fatalf("stored of epoch %s: %v, want %v", epoch, ranges, want)
	}
}

func (f *fixture) gateway(id string) cloud.Gateway {
	f.Helper()
	gateways, err := f.store.Gateways(f.Context())
	if err != nil {
		f.Fatalf("Gateways: %v", err)
	}
	i := slices.IndexFunc(gateways, func(g cloud.Gateway) bool { return g.ID == id })
	if i < 0 {
		f.Fatalf("Gateways does not list %s: %+v", id, gateways)
	}
	return gateways[i]
}

// counts wants the gateway's counters.
func (f *fixture) counts(id string, samples, blocks, keptAside, lost uint64) {
	f.Helper()
	g := f.gateway(id)
	if g.Samples != samples || g.Blocks != blocks || g.KeptAside != keptAside || g.Lost != lost {
		f.Fatalf("gateway %s has %d samples, %d blocks, %d kept aside, %d lost: want %d, %d, %d, %d",
			id, g.Samples, g.Blocks, g.KeptAside, g.Lost, samples, blocks, keptAside, lost)
	}
}

// Received is when all deliveries of NewDelivery arrived.
var Received = time.Date(2026, 5, 30, 20, 45, 0, 123456789, time.UTC)

// NewDelivery returns a block of these samples as ingest hands it over: its
// Samples are in the block's order, which need not be the given one.
func NewDelivery(t testing.TB, gateway string, epoch touchline.Epoch, first uint64, samples []touchline.Sample) cloud.Delivery {
	t.Helper()
	c := codecs.Get().(*codec)
	defer codecs.Put(c)
	encoded, err := c.encoder.Encode(nil, samples)
	if err != nil {
		t.Fatalf("encode block: %v", err)
	}
	if encoded.Count != len(samples) {
		t.Fatalf("only %d of %d samples fit a block", encoded.Count, len(samples))
	}
	d := cloud.Delivery{
		Gateway: gateway, Session: 1, Received: Received,
		Block: wire.Block{Epoch: epoch, First: first, Count: uint32(len(samples)), Data: encoded.Data},
	}
	d.Block.CRC = d.Block.Sum()
	if d.Samples, err = c.decoder.Decode(nil, d.Block.Data); err != nil {
		t.Fatalf("decode block: %v", err)
	}
	d.Clock = c.decoder.Attributes().Clock
	return d
}

// codecs spares tests with thousands of blocks the making of as many codecs.
var codecs = sync.Pool{New: func() any { return &codec{wire.NewEncoder(), wire.NewDecoder()} }}

type codec struct {
	encoder *wire.Encoder
	decoder *wire.Decoder
}

// Undecodable returns a block as ingest hands it over where its data means
// nothing to this version.
func Undecodable(gateway string, epoch touchline.Epoch, first uint64, count uint32, data string) cloud.Delivery {
	d := cloud.Delivery{
		Gateway: gateway, Session: 1, Received: Received, Problem: "block has version 200",
		Block: wire.Block{Epoch: epoch, First: first, Count: count, Data: []byte(data)},
	}
	d.Block.CRC = d.Block.Sum()
	return d
}

// Records returns the samples of the deliveries as the store has to yield
// them.
func Records(deliveries ...cloud.Delivery) []cloud.Record {
	var records []cloud.Record
	for _, d := range deliveries {
		for i, s := range d.Samples {
			records = append(records, cloud.Record{Sample: s, Gateway: d.Gateway, Received: d.Received.UnixNano(), Epoch: d.Block.Epoch, Seq: d.Block.First + uint64(i)})
		}
	}
	slices.SortFunc(records, Compare)
	return records
}

// Compare is the order of samples: time, gateway, epoch, seq.
func Compare(a, b cloud.Record) int {
	return cmp.Or(
		cmp.Compare(a.Time, b.Time),
		cmp.Compare(a.Gateway, b.Gateway),
		bytes.Compare(a.Epoch[:], b.Epoch[:]),
		cmp.Compare(a.Seq, b.Seq),
	)
}

// Series returns n samples of one sensor's heart rate, each step after the
// one before.
func Series(sensor string, start, step int64, n int) []touchline.Sample {
	samples := make([]touchline.Sample, n)
	for i := range samples {
		samples[i] = touchline.Sample{
			Sensor: sensor, Metric: "heart_rate", Unit: "beat/min",
			Time: start + int64(i)*step, Value: touchline.NumberValue(120 + float64(i%40)),
		}
	}
	return samples
}
