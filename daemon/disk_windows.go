package daemon

import (
	"errors"
	"path/filepath"
	"strings"
)

// sameDisk says whether two folders are on one volume, by its name.
func sameDisk(a, b string) (bool, error) {
	here, err1 := filepath.Abs(a)
	there, err2 := filepath.Abs(b)
	return strings.EqualFold(filepath.VolumeName(here), filepath.VolumeName(there)), errors.Join(err1, err2)
}
