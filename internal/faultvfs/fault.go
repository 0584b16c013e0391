package faultvfs

import "fmt"

// A Kind is a kind of call that can fail.
type Kind uint8

// The kinds of calls.
const (
	Read Kind = iota
	Write
	Sync
	Truncate
	kinds // how many there are
)

// String names the kind.
func (k Kind) String() string {
	return [kinds]string{"read", "write", "sync", "truncate"}[k]
}

// A Fault lets calls of one kind fail, counted from Fail on. The zero Fault
// lets all succeed.
type Fault struct {
	Kind    Kind
	N       int  // the first call that fails, from 1; 0 for none
	ForGood bool // all later ones fail too
	Full    bool // the disk is full, where it else has an I/O error
}

// String describes the fault.
func (f Fault) String() string {
	what, often := "fails", "once"
	if f.Full {
		what = "finds the disk full"
	}
	if f.ForGood {
		often = "and from then on"
	}
	return fmt.Sprintf("%s %d %s %s", f.Kind, f.N, what, often)
}

// From sqlite3.h.
const codeFull = 13

var codes = [kinds]int{
	Read:     10 | 1<<8,
	Write:    10 | 3<<8,
	Sync:     10 | 4<<8,
	Truncate: 10 | 6<<8,
}

// Fail puts a fault in the place of the one before, and counts anew.
func (d *Disk) Fail(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.hits = f, 0
	clear(d.calls[:])
}

// Heal ends the fault. It does not change what Failed returns.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = Fault{}
}

// Failed returns how many calls failed since Fail.
func (d *Disk) Failed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hits
}

// fail counts a call and returns SQLite's code for its failure, 0 if it
// succeeds. d.mu is held.
func (d *Disk) fail(k Kind) int {
	d.calls[k]++
	n := d.calls[k]
	if d.fault.N == 0 || d.fault.Kind != k || n < d.fault.N || n > d.fault.N && !d.fault.ForGood {
		return 0
	}
	d.hits++
	if d.fault.Full {
		return codeFull
	}
	return codes[k]
}
