package buffer

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"sync"

	"touchline"
	"touchline/internal/faultvfs"
	"touchline/wire"
)

// A ledger is what the world outside of a buffer knows of it, each fact with
// the position of the disk's log at which it was learned: what a power cut
// must not take back is what was learned before.
type ledger struct {
	disk *faultvfs.Disk

	mu     sync.Mutex           // covers all below
	next   int                  // number of the next sample that numberedAnew makes
	tried  map[int]bool         // samples that were handed over
	told   map[int]int          // …of which the buffer said that they are durable → position
	blocks []knownBlock         // that were in the file at some time
	newest map[blockAt]int      // index in blocks
	acked  []ackedAt            // by the cloud
	lost   map[uint64]knownLoss // by id
	epochs map[touchline.Epoch]bool
	merged uint64 // blocks
	kept   int64  // blocks that were stored and there when an opening ended
	filled int    // times that the disk was full
}

type blockAt struct {
	epoch touchline.Epoch
	first uint64
}

type knownBlock struct {
	wire.Block
	samples []int // numbers, sorted
	handed  int   // position at which it was handed out, never if it was not
}

type ackedAt struct {
	position int
	epoch    touchline.Epoch
	ranges   touchline.Ranges
}

type knownLoss struct {
	wire.Lost
	position  int // at which it was in the file
	announced bool
	confirmed int // position at which the cloud confirmed it, never if it did not
}

// Positions that are before and behind all others.
const (
	always = 0
	never  = math.MaxInt
)

func newLedger(disk *faultvfs.Disk) *ledger {
	return &ledger{
		disk:   disk,
		tried:  make(map[int]bool),
		told:   make(map[int]int),
		newest: make(map[blockAt]int),
		lost:   make(map[uint64]knownLoss),
		epochs: make(map[touchline.Epoch]bool),
	}
}

const walkBegins = 1_700_000_000_000_000_000

// sampleNumber returns a sample that its time tells from all others. Its value
// follows from it and does not compress.
func sampleNumber(n int) touchline.Sample {
	scrambled := uint64(n+1) * 0x9e3779b97f4a7c15
	scrambled ^= scrambled >> 29
	return touchline.Sample{
		Sensor: fmt.Sprintf("belt-%d", n%3), Metric: "position", Unit: "m",
		Time: walkBegins + int64(n), Value: touchline.NumberValue(float64(scrambled >> 12)),
	}
}

// numberedAnew returns samples that were never handed over.
func (l *ledger) numberedAnew(count int) (samples []touchline.Sample, first int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first = l.next
	l.next += count
	for n := first; n < l.next; n++ {
		l.tried[n] = true
		samples = append(samples, sampleNumber(n))
	}
	return samples, first
}

// durable notes that the buffer acknowledged samples.
func (l *ledger) durable(first, count int) {
	now := l.disk.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := first; n < first+count; n++ {
		l.told[n] = now
	}
}

// observe notes what the file holds: what readers see is committed. It looks
// past Next, since that is what hands out.
func (l *ledger) observe(b *Buffer) error {
	blocks, err := rawBlocks(b, b.store.readDB)
	if err != nil {
		return err
	}
	now := l.disk.Now()
	decoder := wire.NewDecoder()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epochs[b.epoch] = true
	for _, block := range blocks {
		if i, known := l.newest[blockAt{block.Epoch, block.First}]; known && l.blocks[i].CRC == block.CRC {
			continue
		}
		samples, err := sampleNumbers(decoder, block)
		if err != nil {
			return err
		}
		l.newest[blockAt{block.Epoch, block.First}] = len(l.blocks)
		l.blocks = append(l.blocks, knownBlock{Block: block, samples: samples, handed: never})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.lost {
		was, known := l.lost[r.ID]
		if !known {
			was.confirmed = never
		}
		if !known || !slices.Equal(was.Ranges, r.Ranges) || was.announced != r.announced {
			was.Lost, was.position, was.announced = r.Lost, now, r.announced
			was.Ranges = r.Ranges.Clone()
			l.lost[r.ID] = was
		}
	}
	return nil
}

// handedOut notes blocks that Next returned.
func (l *ledger) handedOut(blocks []wire.Block) {
	now := l.disk.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, block := range blocks {
		if i, known := l.newest[blockAt{block.Epoch, block.First}]; known {
			l.blocks[i].handed = min(l.blocks[i].handed, now)
		}
	}
}

// acknowledge notes what the cloud is about to acknowledge.
func (l *ledger) acknowledge(epoch touchline.Epoch, ranges touchline.Ranges, lost []uint64) {
	now := l.disk.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(ranges) > 0 {
		l.acked = append(l.acked, ackedAt{now, epoch, ranges.Clone()})
	}
	for _, id := range lost {
		if loss, known := l.lost[id]; known {
			loss.confirmed = min(loss.confirmed, now)
			l.lost[id] = loss
		}
	}
}

// facts returns the positions at which anything was learned, sorted.
func (l *ledger) facts() []int {
	all := slices.Collect(maps.Values(l.told))
	for i := range l.blocks {
		all = append(all, l.blocks[i].handed)
	}
	for i := range l.acked {
		all = append(all, l.acked[i].position)
	}
	for _, loss := range l.lost {
		all = append(all, loss.position, loss.confirmed)
	}
	sort.Ints(all)
	return all
}

// rawBlocks returns the rows of a buffer's file, whatever they hold.
func rawBlocks(b *Buffer, from querier) ([]wire.Block, error) {
	rows, err := from.QueryContext(context.Background(), "SELECT key, count, crc, data FROM block ORDER BY key")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var blocks []wire.Block
	for rows.Next() {
		var key int64
		var block wire.Block
		if err := rows.Scan(&key, &block.Count, &block.CRC, &block.Data); err != nil {
			return nil, err
		}
		i, first, known := b.known.of(key)
		if !known {
			return nil, fmt.Errorf("block %d belongs to no epoch", key)
		}
		block.Epoch, block.First = b.known.uuids[i], first
		blocks = append(blocks, block)
	}
	return blocks, rows.Err()
}

// sampleNumbers decodes a block and returns the numbers of its samples, sorted.
func sampleNumbers(decoder *wire.Decoder, block wire.Block) ([]int, error) {
	if err := block.Check(); err != nil {
		return nil, err
	}
	samples, err := decoder.Decode(nil, block.Data)
	if err != nil {
		return nil, err
	}
	if len(samples) != int(block.Count) {
		return nil, fmt.Errorf("it has %d samples where its count is %d", len(samples), block.Count)
	}
	numbers := make([]int, len(samples))
	for i, s := range samples {
		numbers[i] = int(s.Time - walkBegins)
		if s != sampleNumber(numbers[i]) {
			return nil, fmt.Errorf("sample %d came back as %+v", numbers[i], s)
		}
	}
	sort.Ints(numbers)
	return numbers, nil
}
