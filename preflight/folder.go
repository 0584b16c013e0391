package preflight

import (
	"fmt"
	"os"
	"slices"
	"time"

	"touchline/internal/folder"
)

const (
	syncs     = 50      // that are measured: half a second on a slow SD card
	syncBytes = 8 << 10 // what a small commit writes

	// slowSync is what a sensor notices: it waits for its acknowledgement as
	// long as a sync, and usually for two.
	slowSync = 500 * time.Millisecond

	// ample is free space with which nobody needs to look for a day: 10,000
	// samples/s of 2 bytes are 1.7 GB.
	ample = 2 << 30
)

// folder looks at the data folder, its file system and its disk.
func (r *Report) folder(o *Options) {
	const stop = "choose another folder (gateway.data), or give it to the user as which the gateway runs"
	f, err := os.CreateTemp(o.Dir, ".preflight-*")
	if err != nil {
		r.fail("folder", fmt.Errorf("gateway.data can't be written: %w", err), stop)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	kind, local := fileSystem(o.Dir)
	switch {
	case local:
		r.ok("folder", "%s can be written, on %s", o.Dir, kind)
	default:
		r.add("folder", Fail, fmt.Sprintf("%s is on %s, which does not keep what it is told to sync, or not under a lock", o.Dir, kind),
			"put gateway.data on a local disk (ext4, xfs, btrfs, f2fs)")
	}
	r.syncSpeed(f)
	free, err := folder.Free(o.Dir)
	switch {
	case err != nil:
		r.fail("space", err, stop)
	case free <= o.FreeReserve:
		r.add("space", Fail, fmt.Sprintf("%s free, of which buffer.free_reserve leaves %s to others: nothing is left for samples", size(free), size(o.FreeReserve)), "delete something, or lower buffer.free_reserve")
	case free-o.FreeReserve < ample:
		r.add("space", Warn, fmt.Sprintf("%s free for samples", size(free-o.FreeReserve)), "a busy venue fills 2 GB in a day offline: make space before a long outage")
	default:
		r.ok("space", "%s free for samples", size(free-o.FreeReserve))
	}
}

// syncSpeed measures what each commit waits for.
func (r *Report) syncSpeed(f *os.File) {
	times := make([]time.Duration, syncs)
	data := make([]byte, syncBytes)
	for i := range times {
		began := time.Now()
		_, err := f.Write(data)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			r.fail("sync", fmt.Errorf("the disk does not take a sync: %w", err), "look at the kernel's log (dmesg): the disk may be dying")
			return
		}
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	half, most := times[len(times)/2], times[len(times)*99/100]
	detail := fmt.Sprintf("half of %d syncs within %s, the slowest in %s", syncs, round(half), round(most))
	if most > slowSync {
		r.add("sync", Warn, detail, "sensors wait that long for an acknowledgement: use a faster disk, or end what else writes to it")
		return
	}
	r.ok("sync", "%s", detail)
}

func round(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}

func size(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%.1f MB", float64(max(n, 0))/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// built is before any clock that was set.
var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// clock looks at the system's clock. What the cloud's says about it comes with
// the upgrade.
func (r *Report) clock() {
	now := time.Now()
	if now.Before(built) {
		r.add("clock", Fail, fmt.Sprintf("it shows %s: it was never set", now.Format(time.DateTime)),
			"set it, or let it be set (chrony, systemd-timesyncd); samples are corrected later, and certificates can't be checked well until then")
		return
	}
	switch synced, err := synchronised(); {
	case err != nil:
		r.add("clock", Skip, err.Error(), "")
	case !synced:
		r.add("clock", Warn, fmt.Sprintf("%s, and nothing keeps it right", now.Format(time.DateTime)), "run chrony or systemd-timesyncd, and allow NTP (UDP port 123) to a server, such as the venue's router")
	default:
		r.ok("clock", "%s, synchronised", now.Format(time.DateTime))
	}
}
