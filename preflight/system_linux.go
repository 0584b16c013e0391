package preflight

import (
	"fmt"
	"syscall"
)

// fileSystems are those that matter (linux/magic.h); others are taken to be
// local.
var fileSystems = map[uint32]struct {
	name  string
	local bool
}{
	0xef53: {"ext4", true}, 0x58465342: {"xfs", true}, 0x9123683e: {"btrfs", true}, 0xf2f52010: {"f2fs", true}, 0x2fc12fc1: {"zfs", true},
	0x794c7630: {"overlayfs (of a container)", true}, 0x4d44: {"vfat", true}, 0x2011bab0: {"exfat", true},
	0x6969: {"NFS", false}, 0x517b: {"SMB", false}, 0xff534d42: {"CIFS", false}, 0xfe534d42: {"SMB 2", false}, 0x01021997: {"9p", false},
	0x00c36400: {"Ceph", false}, 0x5346414f: {"AFS", false}, 0x01021994: {"tmpfs, in memory", false}, 0x858458f6: {"ramfs, in memory", false},
}

// fileSystem names what a folder is on, and says whether it is a local disk.
func fileSystem(dir string) (name string, local bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "a file system that can't be asked", true // the other checks will say more
	}
	kind := uint32(st.Type) // its width differs between architectures
	if known, ok := fileSystems[kind]; ok {
		return known.name, known.local
	}
	return fmt.Sprintf("a file system of type %#x", kind), true
}

// synchronised says what the kernel knows of the clock (adjtimex, TIME_ERROR).
func synchronised() (bool, error) {
	const timeError = 5
	state, err := syscall.Adjtimex(&syscall.Timex{})
	if err != nil {
		return false, fmt.Errorf("the kernel does not say whether the clock is synchronised: %w", err)
	}
	return state != timeError, nil
}
