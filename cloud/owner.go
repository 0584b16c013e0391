package cloud

import (
	"context"
	"time"

	"touchline/wire"
)

// overtaken ends a session whose gateway has begun a newer one, at this node or
// at another.
var overtaken = farewell{code: wire.CloseSuperseded, reason: ErrOvertaken.Error()}

// maxAsked is how many sessions one question to the store is about: a lookup of
// some microseconds for each.
const maxAsked = 2000

// watchOwners ends the sessions whose gateways have moved to another node, until
// stop is done. A gateway that moved left a session here that says nothing any
// more, so each look asks about those that were not heard of just now; and
// once in a heartbeat about all, since two boxes with one identity both speak.
// A store that does not answer is asked again: meanwhile a session that was
// overtaken is told of nothing but what is stored, and what it says of its
// gateway is refused (see Recorder).
func (in *ingest) watchOwners(stop context.Context) {
	ticker := time.NewTicker(in.timing.owner)
	defer ticker.Stop()
	for well, all := true, time.Now(); ; {
		select {
		case <-stop.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		silentSince := now.Add(-in.timing.owner / 2)
		if now.Sub(all) >= in.opts.Heartbeat {
			silentSince, all = now, now
		}
		err := in.lookForOwners(stop, silentSince)
		if err != nil && well && stop.Err() == nil {
			in.log.Error("look whether gateways are at other nodes; it is tried again", "error", err)
		}
		well = err == nil
	}
}

func (in *ingest) lookForOwners(ctx context.Context, silentSince time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, in.timing.ask)
	defer cancel()
	for _, sessions := range in.roster.silent(silentSince) {
		gateways, err := in.store.Overtaken(ctx, sessions)
		if err != nil {
			return err
		}
		for _, gateway := range gateways {
			if s := in.roster.overtake(gateway, sessions[gateway]); s != nil {
				in.stats.overtaken.Add(1)
				s.log.Info("the gateway is at another node; its session here ends")
			}
		}
	}
	return nil
}

// silent returns the numbers of the sessions that were not heard of since then,
// by gateway, as many at a time as the store is asked about.
func (r *roster) silent(since time.Time) (pages []map[string]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for gateway, s := range r.newest {
		if s.number == 0 || s.lastSeen.Load() > since.UnixNano() {
			continue // one that began without the store is asked to begin anew
		}
		if len(pages) == 0 || len(pages[len(pages)-1]) == maxAsked {
			pages = append(pages, map[string]uint64{})
		}
		pages[len(pages)-1][gateway] = s.number
	}
	return pages
}

// overtake ends the session of a gateway that has this number, and returns it;
// nil where the gateway has come back meanwhile, or gone.
func (r *roster) overtake(gateway string, number uint64) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.newest[gateway]
	if s == nil || s.number != number {
		return nil
	}
	s.out.end(overtaken)
	return s
}
