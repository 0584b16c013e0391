package buffer

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// freeBytes returns how many bytes this user can still write to the file system
// of dir.
func freeBytes(dir string) (int64, error) {
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

// allocated returns how many bytes of the disk a file takes: its length, since
// nothing here makes files with holes on NTFS.
func allocated(info os.FileInfo) int64 { return info.Size() }
