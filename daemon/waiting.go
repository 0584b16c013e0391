package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"touchline/relay"
)

// Waiting is what a data folder has that nobody else has.
type Waiting struct {
	Samples  uint64   // that the cloud has not
	Archives int      // of other gateways, which this one carries
	Aside    []string // databases that only a newer version reads
}

// Nothing says whether the folder may go.
func (w Waiting) Nothing() bool { return w.Samples == 0 && w.Archives == 0 && len(w.Aside) == 0 }

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
	aside, err := filepath.Glob(filepath.Join(f.config.Gateway.Data, "buffer.db.newer-*"))
	for _, name := range aside {
		if strings.HasSuffix(name, "Z") { // not its report, nor its log
			w.Aside = append(w.Aside, filepath.Base(name))
		}
	}
	return w, err
}
