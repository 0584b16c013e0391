package daemon

import "context"

// followClock tells the buffer each clock that the gateway comes to have, so
// that what was stamped by a worse one is corrected. It returns nil when ctx
// ends.
func (d *Daemon) followClock(ctx context.Context) error {
	for {
		clock, changed := d.clock.Clock()
		d.buffer.SetClock(clock)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

func (d *Daemon) clockStatus() ClockStatus {
	c := d.clock.Status()
	return ClockStatus{
		State: c.State.String(), Source: string(c.Source), ErrorSeconds: c.Error.Seconds(),
		OffsetSeconds: c.Offset.Seconds(), UptimeSeconds: c.Uptime.Seconds(), Unconfirmed: d.buffer.Stats().Clocks,
	}
}
