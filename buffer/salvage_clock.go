package buffer

import (
	"errors"
	"math"

	"touchline"
)

// doubt sees to it that the boot in which a salvaged block was stamped has a
// row, so that what becomes known of its clock reaches the cloud.
func (v *salvage) doubt(samples []touchline.Sample) error {
	clock := v.decoder.Attributes().Clock
	if clock == nil || doubtful(samples, clock) == nil {
		return nil
	}
	return v.keepClock(bootClock{best: touchline.Clock{Boot: clock.Boot}, confirmed: true})
}

// readClocks takes over the corrections that the cloud has not confirmed.
func (v *salvage) readClocks(root uint32) error {
	if root == 0 {
		return nil // a file from before there were any
	}
	return v.walk(root, math.MinInt64, func(c *cell) error {
		var row [5]column // NULL for n, boot, state, offset, confirmed
		_, whole := columns(c.record, row[:])
		r, ok := bootClockOf(row[1].bytes, row[2].number, row[3].number, row[4].number)
		if !whole || !row[1].blob || !ok {
			v.damage(errors.New("the clock of a boot does not hold"))
			return nil
		}
		return v.keepClock(r)
	})
}

// keepClock puts a row into the store unless one is there that says as much.
func (v *salvage) keepClock(r bootClock) error {
	if err := v.begin(); err != nil {
		return err
	}
	var there int
	if err := v.dst.probeClock.QueryRowContext(v.ctx, r.best.Boot[:], int64(r.best.State)).Scan(&there); err != nil || there > 0 {
		return err
	}
	return v.dst.saveClock(r)
}
