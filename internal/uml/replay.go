//go:build linux

package uml

import (
	"fmt"
	"math/rand/v2"
	"os"
)

const (
	// sector is what a disk writes as a whole.
	sector = 512
	// page is in what pieces an image is copied: zero ones are not.
	page = 4096
)

// A Loss says what became of the writes that no flush had covered when the
// power was cut.
type Loss uint8

// The losses. In Some and Torn, chance decides for each write, so that a later
// one may be there without an earlier one; to one sector, a disk keeps the
// order.
const (
	Kept   Loss = iota // all reached the disk
	Lost               // none did
	Some               // some did
	Torn               // some did, some in part
	Losses             // how many there are
)

// String names the loss.
func (l Loss) String() string { return [Losses]string{"kept", "lost", "some", "torn"}[l] }

// A Replay makes the disk as it is after a power cut at any position of a log.
// It serves one goroutine.
type Replay struct {
	log     *WriteLog
	at      int
	image   []byte // what is durable
	used    []bool // its pages that were ever written
	pending []int  // entries behind the last flush
}

// NewReplay begins with base, the disk as it was when the log was begun, which
// the replay keeps.
func NewReplay(log *WriteLog, base []byte) *Replay {
	r := &Replay{log: log, image: base, used: make([]bool, (len(base)+page-1)/page)}
	for i := range r.used {
		for _, b := range base[i*page : min((i+1)*page, len(base))] {
			if b != 0 {
				r.used[i] = true
				break
			}
		}
	}
	return r
}

// Advance goes on to a position, which is not before the one reached: the
// power is cut when the entries with lower positions were done.
func (r *Replay) Advance(position int) error {
	if position < r.at || position > len(r.log.Entries) {
		panic(fmt.Sprintf("BUG: advance from %d to %d of %d", r.at, position, len(r.log.Entries)))
	}
	for ; r.at < position; r.at++ {
		e := r.log.Entries[r.at]
		if e.Flush {
			for _, i := range r.pending {
				if err := r.settle(r.log.Entries[i]); err != nil {
					return err
				}
			}
			r.pending = r.pending[:0]
		}
		if e.bytes > 0 {
			r.pending = append(r.pending, r.at)
		}
	}
	return nil
}

// settle makes a write durable.
func (r *Replay) settle(e LogEntry) error {
	data, err := r.log.read(e)
	if err != nil {
		return err
	}
	if e.at < 0 || e.at+e.bytes > int64(len(r.image)) {
		return fmt.Errorf("log of writes: %d bytes at %d are not on a disk of %d", e.bytes, e.at, len(r.image))
	}
	copy(r.image[e.at:], data)
	for p := e.at / page; p*page < e.at+e.bytes; p++ {
		r.used[p] = true
	}
	return nil
}

// Pending says how many writes a power cut here may take.
func (r *Replay) Pending() int {
	n := 0
	for _, i := range r.pending {
		if !r.log.Entries[i].FUA {
			n++
		}
	}
	return n
}

// Cut cuts the power at the position reached, and writes what is left of the
// disk to paths, anew, in parts of equal size.
func (r *Replay) Cut(loss Loss, random *rand.Rand, paths ...string) error {
	lay, err := r.survivors(loss, random)
	if err != nil {
		return err
	}
	part := int64(len(r.image) / len(paths))
	for i, path := range paths {
		if err := r.write(path, int64(i)*part, part, lay); err != nil {
			return fmt.Errorf("write image of the disk: %w", err)
		}
	}
	return nil
}

// A piece is some of what was not flushed, and is there all the same.
type piece struct {
	at   int64
	data []byte
}

// survivors draws what of the pending writes is on the disk, in their order.
// Those with FUA are.
func (r *Replay) survivors(loss Loss, random *rand.Rand) (kept []piece, _ error) {
	for _, i := range r.pending {
		e := r.log.Entries[i]
		data, err := r.log.read(e)
		if err != nil {
			return nil, err
		}
		switch {
		case e.FUA || loss == Kept:
			kept = append(kept, piece{e.at, data})
		case loss == Lost || random.IntN(2) == 0:
		case loss == Torn && random.IntN(2) == 0:
			for o := int64(0); o < e.bytes; o += sector {
				if random.IntN(2) == 0 {
					kept = append(kept, piece{e.at + o, data[o:min(o+sector, e.bytes)]})
				}
			}
		default:
			kept = append(kept, piece{e.at, data})
		}
	}
	return kept, nil
}

// write makes a sparse file of a part of the disk, with pieces laid over it.
func (r *Replay) write(path string, begin, bytes int64, pieces []piece) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(bytes); err != nil {
		return err
	}
	for p := begin / page; p*page < begin+bytes; {
		if !r.used[p] {
			p++
			continue
		}
		first := p
		for p*page < begin+bytes && r.used[p] {
			p++
		}
		if _, err := f.WriteAt(r.image[first*page:p*page], first*page-begin); err != nil {
			return err
		}
	}
	for _, one := range pieces {
		if one.at < begin || one.at >= begin+bytes {
			continue
		}
		if _, err := f.WriteAt(one.data, one.at-begin); err != nil {
			return err
		}
	}
	return f.Close()
}
