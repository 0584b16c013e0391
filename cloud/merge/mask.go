package merge

import (
	"cmp"
	"slices"

	"touchline"
	"touchline/cloud"
)

// masks are those in force that concern a query, by their sensors, the highest
// number first: the first that covers a sample decides about it.
type masks map[string][]*cloud.Mask

func newMasks(list []cloud.Mask) masks {
	if len(list) == 0 {
		return nil
	}
	by := make(masks)
	for i := range list {
		if m := &list[i]; m.Revokes == 0 && m.Revoked == 0 {
			by[m.Sensor] = append(by[m.Sensor], m)
		}
	}
	for _, of := range by {
		slices.SortFunc(of, func(a, b *cloud.Mask) int { return cmp.Compare(b.Number, a.Number) })
	}
	return by
}

// A veil is what masks hide of one block. Its samples stand in runs of one
// series, so masks are looked up once for each run of a sensor.
type veil struct {
	masks  masks
	block  *Block
	sensor string
	begun  bool
	over   []*cloud.Mask // of sensor, that may cover samples of the block
}

// hides returns the number of the mask that hides a sample of the block, 0
// where none does.
func (v *veil) hides(s *touchline.Sample, seq uint64) uint64 {
	if len(v.masks) == 0 {
		return 0
	}
	if !v.begun || s.Sensor != v.sensor {
		v.lookUp(s.Sensor)
	}
	for _, m := range v.over {
		if s.Time < m.From || s.Time >= m.To || m.Metric != "" && m.Metric != s.Metric {
			continue
		}
		if m.Keeps(v.block.Epoch, seq) {
			return 0
		}
		return m.Number
	}
	return 0
}

func (v *veil) lookUp(sensor string) {
	v.sensor, v.begun, v.over = sensor, true, v.over[:0]
	for _, m := range v.masks[sensor] {
		if m.From <= v.block.Span.To && m.To > v.block.Span.From && slices.Contains(m.Gateways, v.block.Gateway) {
			v.over = append(v.over, m)
		}
	}
}
