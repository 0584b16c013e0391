#include <stdlib.h>
#include <string.h>
#include "sqlite.h"
#include "_cgo_export.h"

// A shim is a VFS above another one. It asks Go before each call that changes
// or reads a file what the disk makes of it.
typedef struct {
	sqlite3_vfs vfs;
	sqlite3_vfs *base;
	uintptr_t disk;
	char name[32];
} shim;

// A shim_file stands before the base's own file, in one allocation of SQLite's.
typedef struct {
	sqlite3_file file;
	uintptr_t disk;
	int id; // -1 for temporary files, which no power cut can hurt
} shim_file;

static sqlite3_file *under(sqlite3_file *f) { return (sqlite3_file *)((shim_file *)f + 1); }

#define BASE(f, call, ...) (under(f)->methods->call(under(f), ##__VA_ARGS__))
#define DISK(f) (((shim_file *)(f))->disk)
#define ID(f) (((shim_file *)(f))->id)

static int file_close(sqlite3_file *f) {
	int rc = BASE(f, close);
	if (ID(f) >= 0) faultvfsClose(DISK(f), ID(f));
	return rc;
}

static int file_read(sqlite3_file *f, void *to, int n, int64_t off) {
	int rc = ID(f) < 0 ? SQLITE_OK : faultvfsRead(DISK(f));
	return rc ? rc : BASE(f, read, to, n, off);
}

static int file_write(sqlite3_file *f, const void *from, int n, int64_t off) {
	if (ID(f) < 0) return BASE(f, write, from, n, off);
	int done = n;
	int failed = faultvfsWrite(DISK(f), ID(f), (void *)from, n, off, &done);
	int rc = done > 0 ? BASE(f, write, from, done, off) : SQLITE_OK;
	return failed ? failed : rc;
}

static int file_truncate(sqlite3_file *f, int64_t size) {
	int rc = ID(f) < 0 ? SQLITE_OK : faultvfsTruncate(DISK(f), ID(f), size);
	return rc ? rc : BASE(f, truncate, size);
}

// The files of a modelled disk need no real sync.
static int file_sync(sqlite3_file *f, int flags) {
	(void)flags;
	return ID(f) < 0 ? SQLITE_OK : faultvfsSync(DISK(f), ID(f));
}

static int file_size(sqlite3_file *f, int64_t *size) { return BASE(f, size, size); }
static int file_lock(sqlite3_file *f, int level) { return BASE(f, lock, level); }
static int file_unlock(sqlite3_file *f, int level) { return BASE(f, unlock, level); }
static int file_reserved(sqlite3_file *f, int *out) { return BASE(f, reserved, out); }
static int file_control(sqlite3_file *f, int op, void *arg) { return BASE(f, control, op, arg); }
static int file_sector(sqlite3_file *f) { return BASE(f, sector); }
static int file_device(sqlite3_file *f) { return BASE(f, device); }
static int file_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **out) {
	return BASE(f, shm_map, page, size, extend, out);
}
static int file_shm_lock(sqlite3_file *f, int off, int n, int flags) { return BASE(f, shm_lock, off, n, flags); }
static void file_shm_barrier(sqlite3_file *f) { BASE(f, shm_barrier); }
static int file_shm_unmap(sqlite3_file *f, int delete) { return BASE(f, shm_unmap, delete); }

// Version 2: no memory-mapped reads and writes, which could not be seen.
static const sqlite3_io_methods file_methods = {
	2, file_close, file_read, file_write, file_truncate, file_sync, file_size, file_lock, file_unlock,
	file_reserved, file_control, file_sector, file_device, file_shm_map, file_shm_lock, file_shm_barrier, file_shm_unmap,
};

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *out) {
	shim *s = (shim *)vfs;
	f->methods = 0;
	int rc = s->base->open(s->base, name, under(f), flags, out);
	if (rc) return rc; // nothing to be closed: methods is 0
	DISK(f) = s->disk;
	ID(f) = name ? faultvfsOpen(s->disk, (char *)name, flags) : -1;
	f->methods = &file_methods;
	return SQLITE_OK;
}

static int shim_delete(sqlite3_vfs *vfs, const char *name, int sync_folder) {
	shim *s = (shim *)vfs;
	int rc = s->base->delete(s->base, name, 0);
	if (rc == SQLITE_OK) faultvfsDelete(s->disk, (char *)name, sync_folder);
	return rc;
}

// The other methods of SQLite's own VFSes do not look at the VFS that they
// are given, and are taken as they are.
void *faultvfs_register(const char *name, const char *base_name, uintptr_t disk) {
	sqlite3_vfs *base = sqlite3_vfs_find ? sqlite3_vfs_find(base_name) : 0;
	shim *s = base ? calloc(1, sizeof(shim)) : 0;
	if (!s) return 0;
	s->vfs = *base;
	s->base = base;
	s->disk = disk;
	strncpy(s->name, name, sizeof(s->name) - 1);
	s->vfs.version = 2;
	s->vfs.next = 0;
	s->vfs.name = s->name;
	s->vfs.file_bytes = (int)sizeof(shim_file) + base->file_bytes;
	s->vfs.open = shim_open;
	s->vfs.delete = shim_delete;
	if (sqlite3_vfs_register(&s->vfs, 0) != SQLITE_OK) {
		free(s);
		return 0;
	}
	return s;
}

void faultvfs_unregister(void *registered) {
	sqlite3_vfs_unregister(&((shim *)registered)->vfs);
	free(registered);
}
