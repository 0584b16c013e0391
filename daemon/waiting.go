package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"touchline/buffer"
	"touchline/relay"
)

// Waiting is what a data folder has that nobody else has.
type Waiting struct {
	Samples  uint64   // that the cloud has not
	Archives int      // of other gateways, which this one carries
	Aside    []string // databases that only a newer version reads
	Left     []string // that were set aside, and from which not all has been taken over
}

// Nothing says whether the folder may go.
func (w Waiting) Nothing() bool {
	return w.Samples == 0 && w.Archives == 0 && len(w.Aside)+len(w.Left) == 0
}

// String lists it, for people.
func (w Waiting) String() string {
	var parts []string
	if w.Samples > 0 {
		parts = append(parts, fmt.Sprintf("%d samples that the cloud has not", w.Samples))
	}
	if w.Archives > 0 {
		parts = append(parts, fmt.Sprintf("%d archives of other gateways that the cloud has not", w.Archives))
	}
	if len(w.Aside) > 0 {
		parts = append(parts, "what a newer version wrote and has to take back ("+strings.Join(w.Aside, ", ")+")")
	}
	if len(w.Left) > 0 {
		parts = append(parts, "what is not taken over yet from databases that were set aside, which the next start goes on with ("+strings.Join(w.Left, ", ")+")")
	}
	return strings.Join(parts, ", ")
}

// Waiting looks what would be lost with the folder. A folder without a buffer
// has no samples.
func (f *Folder) Waiting(ctx context.Context) (w Waiting, err error) {
	summary, err := f.Export(ctx, false, io.Discard)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return w, err
	}
	w.Samples = summary.Samples
	o := relayOptions(f.config)
	o.URLs, o.Client = nil, nil // it is looked at, and sent nowhere
	carried, err := relay.New(o, slog.New(slog.DiscardHandler))
	if err != nil {
		return w, err
	}
	w.Archives = carried.Stats().Waiting
	w.Aside, w.Left, err = buffer.Left(f.config.Gateway.Data)
	return w, err
}
