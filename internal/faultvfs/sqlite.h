// What SQLite publishes of its interface to the operating system, and no more
// than the shim needs: https://www.sqlite.org/c3ref/vfs.html and
// https://www.sqlite.org/c3ref/io_methods.html. It is part of SQLite's stable
// ABI, so no header of the library has to be found at build time.
#ifndef FAULTVFS_SQLITE_H
#define FAULTVFS_SQLITE_H

#include <stdint.h>

#define SQLITE_OK 0
#define SQLITE_ERROR 1
#define SQLITE_NOMEM 7

typedef struct sqlite3_file sqlite3_file;
typedef struct sqlite3_io_methods sqlite3_io_methods;
typedef struct sqlite3_vfs sqlite3_vfs;

struct sqlite3_file {
	const sqlite3_io_methods *methods;
};

struct sqlite3_io_methods {
	int version;
	int (*close)(sqlite3_file *);
	int (*read)(sqlite3_file *, void *, int, int64_t);
	int (*write)(sqlite3_file *, const void *, int, int64_t);
	int (*truncate)(sqlite3_file *, int64_t);
	int (*sync)(sqlite3_file *, int);
	int (*size)(sqlite3_file *, int64_t *);
	int (*lock)(sqlite3_file *, int);
	int (*unlock)(sqlite3_file *, int);
	int (*reserved)(sqlite3_file *, int *);
	int (*control)(sqlite3_file *, int, void *);
	int (*sector)(sqlite3_file *);
	int (*device)(sqlite3_file *);
	int (*shm_map)(sqlite3_file *, int, int, int, void volatile **);
	int (*shm_lock)(sqlite3_file *, int, int, int);
	void (*shm_barrier)(sqlite3_file *);
	int (*shm_unmap)(sqlite3_file *, int);
};

struct sqlite3_vfs {
	int version;
	int file_bytes;
	int max_path;
	sqlite3_vfs *next;
	const char *name;
	void *app;
	int (*open)(sqlite3_vfs *, const char *, sqlite3_file *, int, int *);
	int (*delete)(sqlite3_vfs *, const char *, int);
	int (*access)(sqlite3_vfs *, const char *, int, int *);
	int (*full_path)(sqlite3_vfs *, const char *, int, char *);
	void *(*dl_open)(sqlite3_vfs *, const char *);
	void (*dl_error)(sqlite3_vfs *, int, char *);
	void (*(*dl_sym)(sqlite3_vfs *, void *, const char *))(void);
	void (*dl_close)(sqlite3_vfs *, void *);
	int (*randomness)(sqlite3_vfs *, int, char *);
	int (*sleep)(sqlite3_vfs *, int);
	int (*time)(sqlite3_vfs *, double *);
	int (*last_error)(sqlite3_vfs *, int, char *);
	int (*time64)(sqlite3_vfs *, int64_t *);
};

// Weak, since these are in another Go package's part of the program: each
// package is linked by itself first, to see what it needs, and then all are.
__attribute__((weak)) sqlite3_vfs *sqlite3_vfs_find(const char *);
__attribute__((weak)) int sqlite3_vfs_register(sqlite3_vfs *, int);
__attribute__((weak)) int sqlite3_vfs_unregister(sqlite3_vfs *);

#endif
