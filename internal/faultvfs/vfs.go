package faultvfs

/*
#include <stdint.h>
#include <stdlib.h>
void *faultvfs_register(const char *name, const char *base_name, uintptr_t disk);
void faultvfs_unregister(void *registered);
*/
import "C"

import (
	"fmt"
	"runtime/cgo"
	"sync/atomic"
	"unsafe"

	_ "github.com/mattn/go-sqlite3" // whose SQLite gets the VFS
)

var registered atomic.Uint64 // names given

// register makes the disk a VFS of SQLite's above base.
func (d *Disk) register(base string) error {
	d.name = fmt.Sprintf("fault-%d", registered.Add(1))
	name, under := C.CString(d.name), C.CString(base)
	defer C.free(unsafe.Pointer(name))
	defer C.free(unsafe.Pointer(under))
	d.handle = cgo.NewHandle(d)
	if d.vfs = C.faultvfs_register(name, under, C.uintptr_t(d.handle)); d.vfs == nil {
		d.handle.Delete()
		return fmt.Errorf("register VFS %s above %q: SQLite has no such VFS, or no memory", d.name, base)
	}
	return nil
}

func (d *Disk) unregister() {
	C.faultvfs_unregister(d.vfs)
	d.handle.Delete()
}

func diskOf(handle C.uintptr_t) *Disk { return cgo.Handle(handle).Value().(*Disk) }

//export faultvfsOpen
func faultvfsOpen(handle C.uintptr_t, name *C.char, flags C.int) C.int {
	return C.int(diskOf(handle).open(C.GoString(name), int(flags)))
}

//export faultvfsClose
func faultvfsClose(handle C.uintptr_t, file C.int) {
	diskOf(handle).close(int(file))
}

//export faultvfsDelete
func faultvfsDelete(handle C.uintptr_t, name *C.char, syncFolder C.int) {
	diskOf(handle).remove(C.GoString(name), syncFolder != 0)
}

//export faultvfsRead
func faultvfsRead(handle C.uintptr_t) C.int {
	return C.int(diskOf(handle).read())
}

//export faultvfsWrite
func faultvfsWrite(handle C.uintptr_t, file C.int, from unsafe.Pointer, n C.int, off C.int64_t, done *C.int) C.int {
	written, code := diskOf(handle).write(int(file), C.GoBytes(from, n), int64(off))
	*done = C.int(written)
	return C.int(code)
}

//export faultvfsTruncate
func faultvfsTruncate(handle C.uintptr_t, file C.int, size C.int64_t) C.int {
	return C.int(diskOf(handle).truncate(int(file), int64(size)))
}

//export faultvfsSync
func faultvfsSync(handle C.uintptr_t, file C.int) C.int {
	return C.int(diskOf(handle).sync(int(file)))
}
