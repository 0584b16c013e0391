// What SQLite publishes of a VFS, and no more than is needed here:
// https://www.sqlite.org/c3ref/vfs.html. It is part of SQLite's stable ABI, so
// no header of the library has to be found at build time.
#ifndef TOUCHLINE_SHM_H
#define TOUCHLINE_SHM_H

typedef void (*sqlite3_syscall)(void);
typedef struct sqlite3_vfs sqlite3_vfs;

struct sqlite3_vfs {
	int version;
	int file_bytes, max_path;
	sqlite3_vfs *next;
	const char *name;
	void *app;
	void (*unused[13])(void); // xOpen to xCurrentTimeInt64
	int (*set_system_call)(sqlite3_vfs *, const char *, sqlite3_syscall);
};

// Weak, since it is in another Go package's part of the program: each package
// is linked by itself first, to see what it needs, and then all are.
__attribute__((weak)) sqlite3_vfs *sqlite3_vfs_find(const char *);

int shm_allocate(void);

#endif
