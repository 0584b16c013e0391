package buffer

import (
	"path/filepath"
	"slices"
)

// Left returns the names of databases in a folder that were set aside and have
// samples that no other has: those that only a newer touchline reads, and those
// of which this one has not taken over all that can be.
func Left(dir string) (newer, pending []string, err error) {
	list, err := listAside(filepath.Join(dir, databaseName))
	for a := range slices.Values(list) {
		switch name := filepath.Base(a.path); {
		case a.unknown():
			newer = append(newer, name)
		case a.pending():
			pending = append(pending, name)
		}
	}
	return newer, pending, err
}
