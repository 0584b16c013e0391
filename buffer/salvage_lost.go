package buffer

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"

	"touchline"
	"touchline/wire"
)

// suspectIn returns what the head of a damaged block says, if that can be so.
func (v *salvage) suspectIn(c *cell) suspect {
	var row [7]column
	i := v.below(c.key) - 1
	if n, _ := columns(c.record, row[:]); n < 4 || i < 0 || row[1].number < 1 || row[1].number > wire.MaxBlockSamples {
		return suspect{}
	}
	first := uint64(c.key - v.candidates[i].base)
	return suspect{
		epoch: v.candidates[i].epoch, r: touchline.Range{First: first, Last: first + uint64(row[1].number) - 1},
		minTime: row[2].number, maxTime: max(row[2].number, row[3].number),
	}
}

// suspect remembers a damaged block, up to the one that follows at key: its
// count may be what is damaged.
func (v *salvage) suspect(s suspect, key int64) {
	i := v.below(key) - 1
	if i >= 0 && v.candidates[i].epoch == s.epoch && key < math.MaxInt64 {
		s.r.Last = min(s.r.Last, uint64(key-v.candidates[i].base)-1)
	}
	if s.r.Valid() && len(v.suspects) < maxSuspects {
		v.suspects = append(v.suspects, s)
	}
}

// lostID makes the number of a lost record of what it is about, so that it
// stays the same where a salvage has to be done again.
func (s *suspect) lostID() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, s.epoch, s.r)
	return 1 + h.Sum64()%touchline.MaxSeq
}

// recordSuspects records as lost what was damaged and was not found in any
// older version. Other holes are no losses that are known: their numbers may
// be long in the cloud.
func (v *salvage) recordSuspects() error {
	var lost []*wire.Lost // the last of each epoch
	for _, s := range v.suspects {
		if i, known := v.there.index[s.epoch]; known {
			occupied, err := v.occupied(v.there.bases[i]+int64(s.r.First), int64(s.r.Count()))
			if err != nil {
				return err
			}
			if occupied {
				continue
			}
		}
		v.report.Lost += int64(s.r.Count())
		n := len(lost)
		if n == 0 || lost[n-1].Epoch != s.epoch || len(lost[n-1].Ranges) >= maxLostRanges {
			lost = append(lost, &wire.Lost{ID: s.lostID(), Epoch: s.epoch, Cause: damage.String(), MinTime: s.minTime, MaxTime: s.maxTime})
			n++
		}
		l := lost[n-1]
		l.Ranges.Add(s.r)
		l.MinTime, l.MaxTime = min(l.MinTime, s.minTime), max(l.MaxTime, s.maxTime)
	}
	for _, l := range lost {
		if err := v.insertLost(l); err != nil {
			return err
		}
	}
	return nil
}

// readLost takes over the losses that the cloud has not confirmed.
func (v *salvage) readLost(root uint32) error {
	return v.walk(root, math.MinInt64, func(c *cell) error {
		var row [7]column // NULL for n, id, epoch, ranges, cause, min_time, max_time
		_, whole := columns(c.record, row[:])
		l := wire.Lost{ID: uint64(row[1].number), Cause: string(row[4].bytes), MinTime: row[5].number, MaxTime: row[6].number}
		if !whole || l.ID == 0 || l.ID > touchline.MaxSeq || len(row[2].bytes) != len(l.Epoch) || !knownCause(l.Cause) ||
			json.Unmarshal(row[3].bytes, &l.Ranges) != nil || len(l.Ranges) == 0 {
			v.damage(errors.New("a lost record does not hold"))
			return nil
		}
		copy(l.Epoch[:], row[2].bytes)
		return v.insertLost(&l)
	})
}

func (v *salvage) insertLost(l *wire.Lost) error {
	if err := v.begin(); err != nil {
		return err
	}
	var there int
	if err := v.dst.probeLost.QueryRowContext(v.ctx, int64(l.ID)).Scan(&there); err != nil || there > 0 {
		return err
	}
	ranges, err := json.Marshal(l.Ranges)
	if err != nil {
		return err
	}
	if _, err := v.dst.insertLost.ExecContext(v.ctx, int64(l.ID), l.Epoch[:], string(ranges), l.Cause, l.MinTime, l.MaxTime); err != nil {
		return fmt.Errorf("take in lost record: %w", err)
	}
	return nil
}
