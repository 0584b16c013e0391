// Package faultvfs is a disk for tests that can lose power and fail. A Disk is
// a VFS of SQLite's above a real one: it writes down every write, truncation,
// sync, creation and deletion, rebuilds from that what a power cut at any
// moment could have left (Replay), and lets the n-th call of a kind fail
// (Fail). Close it when all connections that use it are closed.
//
// It sees what goes through SQLite, and assumes one folder. A file that
// somebody else wrote while SQLite had it closed is taken to be synced. A sync
// is never passed on: the real files belong into memory (/dev/shm).
package faultvfs

import (
	"os"
	"path/filepath"
	"runtime/cgo"
	"sync"
	"time"
	"unsafe"
)

// A Disk is safe for concurrent use.
type Disk struct {
	name   string
	handle cgo.Handle
	vfs    unsafe.Pointer

	mu    sync.Mutex // covers all below
	log   []op
	files []*file        // by id
	names map[string]int // ids of the files that have a name
	fault Fault
	calls [kinds]int
	hits  int
}

// A file is one that SQLite opened under a name; deleted and made again it is
// another.
type file struct {
	path, name string // name is the base name
	opened     int    // by how many connections
	syncFolder bool   // its next sync makes the folder durable too, as SQLite does for new logs and journals
}

// An op is what happened to the disk.
type op struct {
	kind opKind
	file int    // -1 for the folder
	off  int64  // of a write; the size of a truncation
	data []byte // of a write; not changed
}

type opKind uint8

const (
	opLoad opKind = iota // the file was there, and durable, before the log began
	opCreate
	opDelete
	opWrite
	opTruncate
	opSync
	opSyncFailed
	opSyncFolder
	opRewrite // somebody else wrote the file whole, and synced it
)

// untouched is the time that a file has while SQLite has it closed: one that
// has another when it is opened was written by somebody else.
var untouched = time.Unix(1, 0)

// New makes a disk above one of SQLite's VFSes, "unix-excl" or "unix".
func New(base string) (*Disk, error) {
	d := &Disk{names: make(map[string]int)}
	if err := d.register(base); err != nil {
		return nil, err
	}
	return d, nil
}

// Close gives the VFS back. No connection may use it any more.
func (d *Disk) Close() { d.unregister() }

// Name is what a data source names as its vfs.
func (d *Disk) Name() string { return d.name }

// Now returns the length of the log: what happened before has a lower
// position, what happens later this one or a higher one.
func (d *Disk) Now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}

// From sqlite3.h.
const (
	openJournal = 0x0800
	openWAL     = 0x80000
	openTemp    = 0x0200 | 0x0400 | 0x1000 | 0x2000 // temporary databases, journals and sub-journals
)

// open returns the id of the file that SQLite just opened, -1 for one that
// does not matter.
func (d *Disk) open(path string, flags int) int {
	if flags&openTemp != 0 {
		return -1
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	name := filepath.Base(path)
	if id, known := d.names[name]; known {
		d.reopen(id)
		return id
	}
	id := len(d.files)
	d.files = append(d.files, &file{path: path, name: name, opened: 1, syncFolder: flags&(openJournal|openWAL) != 0})
	d.names[name] = id
	// Nobody else has it open yet, so reading it drops no locks.
	if there, err := os.ReadFile(path); err == nil && len(there) > 0 {
		d.files[id].syncFolder = false
		d.log = append(d.log, op{kind: opLoad, file: id, data: there})
	} else {
		d.log = append(d.log, op{kind: opCreate, file: id})
	}
	return id
}

// reopen looks whether a file was written meanwhile. d.mu is held.
func (d *Disk) reopen(id int) {
	f := d.files[id]
	f.opened++
	if f.opened > 1 {
		return
	}
	info, err := os.Stat(f.path)
	if err != nil || info.ModTime().Equal(untouched) {
		return
	}
	if there, err := os.ReadFile(f.path); err == nil {
		d.log = append(d.log, op{kind: opRewrite, file: id, data: there})
	}
}

func (d *Disk) close(id int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[id]
	f.opened--
	if here, named := d.names[f.name]; f.opened == 0 && named && here == id {
		_ = os.Chtimes(f.path, untouched, untouched) // else it counts as written: the tests see more syncs than there were
	}
}

func (d *Disk) remove(path string, syncFolder bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := filepath.Base(path)
	if id, known := d.names[name]; known {
		delete(d.names, name)
		d.log = append(d.log, op{kind: opDelete, file: id})
	}
	if syncFolder {
		d.log = append(d.log, op{kind: opSyncFolder, file: -1})
	}
}

func (d *Disk) read() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fail(Read)
}

// write returns how many bytes are to be written for real. A write that fails
// has written its first half, in whole sectors.
func (d *Disk) write(id int, data []byte, off int64) (written, code int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if code = d.fail(Write); code != 0 {
		data = data[:len(data)/2/sector*sector]
	}
	if len(data) > 0 {
		d.log = append(d.log, op{kind: opWrite, file: id, off: off, data: data})
	}
	return len(data), code
}

func (d *Disk) truncate(id int, size int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if code := d.fail(Truncate); code != 0 {
		return code
	}
	d.log = append(d.log, op{kind: opTruncate, file: id, off: size})
	return 0
}

func (d *Disk) sync(id int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if code := d.fail(Sync); code != 0 {
		d.log = append(d.log, op{kind: opSyncFailed, file: id})
		return code
	}
	d.log = append(d.log, op{kind: opSync, file: id})
	if d.files[id].syncFolder {
		d.files[id].syncFolder = false
		d.log = append(d.log, op{kind: opSyncFolder, file: -1})
	}
	return 0
}
