//go:build linux && !mutant_shm_hole

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/types.h>
#include "shm_linux.h"

// SQLite shares the index of its log with other processes in a mapped file
// (-shm), of which it writes one byte in each 4 KiB. Where the file system's
// blocks are smaller the rest is a hole, and where the disk is full the first
// store into that hole ends the process with SIGBUS. So the blocks are
// allocated before they are mapped, and a full disk is an error that SQLite
// returns. File systems that can't allocate (EOPNOTSUPP) are left as they are.
static void *map_allocated(void *addr, size_t n, int prot, int flags, int fd, off_t at) {
	if ((flags & MAP_SHARED) && (prot & PROT_WRITE)) {
		int failed;
		do {
			failed = fallocate(fd, 0, at, (off_t)n);
		} while (failed && errno == EINTR);
		if (failed && (errno == ENOSPC || errno == EDQUOT || errno == EIO || errno == EROFS)) return MAP_FAILED;
	}
	return mmap(addr, n, prot, flags, fd, at);
}

// SQLite lets its calls to the system be replaced by name. It is one table for
// all VFSes of the process; nothing else in it maps a file to be written.
int shm_allocate(void) {
	sqlite3_vfs *unix_vfs = sqlite3_vfs_find ? sqlite3_vfs_find("unix") : 0;
	if (!unix_vfs || unix_vfs->version < 3 || !unix_vfs->set_system_call) return 1;
	return unix_vfs->set_system_call(unix_vfs, "mmap", (sqlite3_syscall)map_allocated);
}
