package folder

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// Sync does nothing: NTFS journals its names, and a folder can't be synced.
func Sync(string) error { return nil }

// Give does nothing: what an administrator makes in a folder has the rights
// that the folder gives.
func Give(*os.File) error { return nil }

// Free returns how many bytes this user can still write to the disk of dir.
func Free(dir string) (int64, error) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	return int64(min(free, 1<<62)), nil
}
