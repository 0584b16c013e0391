package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"touchline"
	"touchline/archive"
	"touchline/wire"
)

// Imported says what became of what an archive holds.
type Imported struct {
	Gateway   string `json:"gateway"`    // whose archive it is
	Blocks    uint64 `json:"blocks"`     // recorded now
	Samples   uint64 `json:"samples"`    // …of those
	Repeats   uint64 `json:"repeats"`    // blocks that were stored before
	KeptAside uint64 `json:"kept_aside"` // blocks stored, but not among the samples
	Lost      uint64 `json:"lost"`       // records of loss
	Reason    string `json:"reason"`     // why the first one was kept aside
}

// ErrUnknownKey says that an archive is not signed with a key that is known to
// be its gateway's.
var ErrUnknownKey = errors.New("unknown key")

// trust says whether the key of an archive is registered as its gateway's.
func trust(ctx context.Context, registry Registry) archive.Trust {
	return func(h archive.Header) error {
		keys, err := registry.GatewayKeys(ctx, h.Gateway)
		if err != nil {
			return err
		}
		if !slices.Contains(keys, h.Key) {
			return fmt.Errorf("%w: the archive says it is of gateway %s, signed with %s, and that key is not registered as its own; "+
				"where `touchline key` prints it on that gateway, run `touchline-cloud gateway key %s %s`", ErrUnknownKey, h.Gateway, h.Key, h.Gateway, h.Key)
		}
		return nil
	}
}

// Import records a gateway's archive, each sample once. It reads the file
// twice: what is cut, changed, or not signed by a key that is registered for
// its gateway is refused before anything is recorded. Every block goes through
// the store's Record, as if its gateway had sent it, so doing it again changes
// nothing, and the gateway forgets, when it is back, what is stored. It may run
// beside a Server on the same store, and when it fails, be done again.
func Import(ctx context.Context, store Store, file io.ReadSeeker) (Imported, error) {
	h, _, err := archive.Verify(file, trust(ctx, store))
	done := Imported{Gateway: h.Gateway}
	if err != nil {
		return done, fmt.Errorf("import archive: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return done, fmt.Errorf("import archive: %w", err)
	}
	r, err := archive.NewReader(file)
	if err == nil && r.Header() != h {
		err = errors.New("it was replaced while it was read")
	}
	if err != nil {
		return done, fmt.Errorf("import archive: %w", err)
	}
	i := importer{store: store, decoder: wire.NewDecoder(), done: &done}
	for {
		seg, err := r.Next()
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err == nil {
			err = i.take(ctx, &seg)
		}
		if err != nil {
			return done, fmt.Errorf("import archive: %w", err)
		}
	}
}

type importer struct {
	store   Store
	decoder *wire.Decoder
	arena   []touchline.Sample
	done    *Imported
}

// take records one segment, in as many transactions as its samples need.
func (i *importer) take(ctx context.Context, seg *archive.Segment) error {
	for blocks := seg.Blocks; len(blocks) > 0; {
		n, samples := 0, 0
		for n < len(blocks) && n < maxBatchBlocks {
			if samples += int(blocks[n].Count); n > 0 && samples > maxBatchSamples {
				break
			}
			n++
		}
		if err := i.record(ctx, blocks[:n]); err != nil {
			return err
		}
		blocks = blocks[n:]
	}
	for _, l := range seg.Lost {
		if err := i.store.Lost(ctx, i.done.Gateway, 0, l); err != nil {
			return err
		}
		i.done.Lost++
	}
	return nil
}

func (i *importer) record(ctx context.Context, blocks []wire.Block) error {
	batch := make([]Delivery, len(blocks))
	arena := i.arena[:0]
	now := time.Now()
	for n := range blocks {
		batch[n] = Delivery{Gateway: i.done.Gateway, Block: blocks[n], Received: now}
		arena = batch[n].decode(i.decoder, arena)
	}
	i.arena = arena
	defer clear(arena) // lets go of names and texts
	outcomes, err := i.store.Record(ctx, batch)
	if err != nil {
		return err
	}
	for n, o := range outcomes {
		switch {
		case o.Repeat:
			i.done.Repeats++
		case o.KeptAside:
			if i.done.KeptAside++; i.done.KeptAside == 1 {
				i.done.Reason = o.Reason
			}
		default:
			i.done.Blocks++
			i.done.Samples += uint64(blocks[n].Count)
		}
	}
	return nil
}
