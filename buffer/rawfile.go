package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// A rawFile reads a database and its log without SQLite, which would change
// them, and which reads nothing of a tree whose root is damaged. It is made
// for files that may be damaged anywhere: whatever they hold, it returns
// errors, takes bounded memory, and ends. The format is that of
// https://www.sqlite.org/fileformat2.html, sections 1 and 2.
type rawFile struct {
	db, wal *os.File // wal is nil where there is none
	pages   uint32   // of the database file, a part of a page at its end included
	log     *rawLog
}

// openRaw opens the database at path and its log, for reading alone. The log
// may be missing, and so may the database where the log is there.
func openRaw(path string) (_ *rawFile, err error) {
	f := new(rawFile)
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	dbSize, walSize := int64(0), int64(0)
	if f.db, dbSize, err = openPart(path); err != nil {
		return nil, err
	}
	if f.wal, walSize, err = openPart(path + "-wal"); err != nil {
		return nil, err
	}
	f.pages = uint32(min((dbSize+pageBytes-1)/pageBytes, 1<<32-1))
	var r io.ReaderAt
	if f.wal != nil {
		r = f.wal
	}
	f.log, err = readLog(r, walSize, f.pages)
	return f, err
}

// openPart opens a file that may be missing.
func openPart(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if !info.Mode().IsRegular() {
		return nil, 0, f.Close()
	}
	return f, info.Size(), nil
}

func (f *rawFile) close() error {
	var errs []error
	for _, part := range []*os.File{f.db, f.wal} {
		if part != nil {
			errs = append(errs, part.Close())
		}
	}
	return errors.Join(errs...)
}

// A view says which version of each page is read: the youngest one among the
// first frames of the log, or the database's. The live view has the frames in
// force; it is what SQLite would see.
type view struct {
	f      *rawFile
	frames int
	local  bool // of a record only what is on the page of its tree
}

func (f *rawFile) live() view { return view{f: f, frames: f.log.inForce} }

// read fills page with page number n, with zeros where a file ends early.
func (v view) read(n uint32, page []byte) error {
	if i := v.f.log.version(n, v.frames); i >= 0 {
		return v.f.log.readFrame(i, page)
	}
	return v.f.readPage(n, page)
}

// readPage reads from the database file alone.
func (f *rawFile) readPage(n uint32, page []byte) error {
	if n == 0 || n > f.pages {
		return fmt.Errorf("there is no page %d", n)
	}
	got, err := f.db.ReadAt(page, int64(n-1)*pageBytes)
	clear(page[got:])
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// last returns the highest page number that is anywhere.
func (f *rawFile) last() uint32 {
	last := f.pages
	for n := range f.log.byPage {
		last = max(last, n)
	}
	return last
}

// Types of b-tree pages.
const (
	interiorIndex = 2
	interiorTable = 5
	leafIndex     = 10
	leafTable     = 13
)

// maxRecordBytes bounds what is read of a cell: the largest block (192 KiB)
// and its integers; the text of a lost record is below 64 KiB.
const maxRecordBytes = 200 << 10

// A cell is an entry of a b-tree page.
type cell struct {
	left   uint32 // page, on interior pages
	key    int64  // in tables
	record []byte // but on interior pages of tables
	err    error  // the record can't be read
}

// cells calls take for each entry of a page, and returns an error if the page
// is no b-tree page, or one of its entries lies outside. Overflow pages are
// read through v.
func (v view) cells(n uint32, page []byte, take func(*cell)) (err error) {
	at := 0
	if n == 1 {
		at = 100 // behind the head of the file
	}
	kind, count := page[at], int(binary.BigEndian.Uint16(page[at+3:]))
	list := at + 8
	switch kind {
	case leafTable, leafIndex:
	case interiorTable, interiorIndex:
		list = at + 12
	default:
		return fmt.Errorf("page %d is of no known type (%d)", n, kind)
	}
	if list+2*count > pageBytes {
		return fmt.Errorf("page %d has %d entries", n, count)
	}
	for i := range count {
		start := int(binary.BigEndian.Uint16(page[list+2*i:]))
		if start < list+2*count || start >= pageBytes {
			err = fmt.Errorf("entry %d of page %d lies outside", i, n)
			continue
		}
		c, bad := v.cell(kind, page[start:])
		if bad != nil {
			err = fmt.Errorf("entry %d of page %d: %w", i, n, bad)
			continue
		}
		if c.err != nil {
			err = fmt.Errorf("entry %d of page %d: %w", i, n, c.err)
		}
		take(&c)
	}
	if kind == interiorTable || kind == interiorIndex {
		take(&cell{left: binary.BigEndian.Uint32(page[at+8:]), key: math.MaxInt64}) // what is above all keys
	}
	return err
}

var errCutOff = errors.New("it is cut off")

func (v view) cell(kind byte, data []byte) (c cell, err error) {
	if kind == interiorTable || kind == interiorIndex {
		if len(data) < 4 {
			return c, errCutOff
		}
		c.left, data = binary.BigEndian.Uint32(data), data[4:]
	}
	var size uint64
	if kind != interiorTable {
		if size, data, err = varint(data); err != nil {
			return c, err
		}
	}
	if kind == leafTable || kind == interiorTable {
		var key uint64
		if key, data, err = varint(data); err != nil {
			return c, err
		}
		c.key = int64(key)
	}
	if kind != interiorTable {
		c.record, c.err = v.payload(kind, size, data)
	}
	return c, nil
}

// payload returns a record of size bytes that begins in data, and goes on on
// overflow pages where it does not fit: section 1.6.
func (v view) payload(kind byte, size uint64, data []byte) ([]byte, error) {
	if size > maxRecordBytes {
		return nil, fmt.Errorf("it has %d bytes", size)
	}
	most := pageBytes - 35
	if kind != leafTable {
		most = (pageBytes-12)*64/255 - 23
	}
	local := int(size)
	if local > most {
		const least = (pageBytes-12)*32/255 - 23
		if local = least + (int(size)-least)%(pageBytes-4); local > most {
			local = least
		}
	}
	if local > len(data) {
		return nil, errCutOff
	}
	if local == int(size) {
		return data[:local], nil
	}
	if len(data) < local+4 {
		return nil, errCutOff
	}
	if v.local {
		return data[:local], errCutOff
	}
	record := append(make([]byte, 0, size), data[:local]...)
	next := binary.BigEndian.Uint32(data[local:])
	page := make([]byte, pageBytes)
	for len(record) < int(size) {
		if err := v.read(next, page); err != nil {
			return record, err
		}
		next = binary.BigEndian.Uint32(page)
		record = append(record, page[4:4+min(int(size)-len(record), pageBytes-4)]...)
	}
	return record, nil
}

// varint reads the integer of section 1.6.
func varint(data []byte) (uint64, []byte, error) {
	var n uint64
	for i := range min(len(data), 9) {
		if i == 8 {
			return n<<8 | uint64(data[i]), data[9:], nil
		}
		n = n<<7 | uint64(data[i]&0x7f)
		if data[i] < 0x80 {
			return n, data[i+1:], nil
		}
	}
	return 0, nil, errCutOff
}

// A column is a value of a record: a number, or bytes where blob is true. NULL
// is the number 0.
type column struct {
	number int64
	bytes  []byte
	blob   bool
}

// columns reads a record (section 2.1) into as many columns as into has, whose
// bytes alias it. It returns how many it could read, and whether the record has
// exactly these and nothing is missing or left over.
func columns(record []byte, into []column) (n int, whole bool) {
	size, rest, err := varint(record)
	head := len(record) - len(rest)
	if err != nil || size > uint64(len(record)) || int(size) < head {
		return 0, false
	}
	types, body := record[head:size], record[size:]
	for n = range into {
		var kind uint64
		if kind, types, err = varint(types); err != nil {
			return n, false
		}
		width := 0
		switch {
		case kind >= 12:
			into[n].blob = true
			width = int(min((kind-12)/2, maxRecordBytes))
		case kind <= 4:
			width = int(kind)
		case kind <= 6:
			width = [...]int{6, 8}[kind-5]
		case kind == 8, kind == 9:
			into[n].number = int64(kind - 8)
		default: // a float, which no column of a buffer is
			return n, false
		}
		if width > len(body) {
			return n, false
		}
		if into[n].blob {
			into[n].bytes = body[:width]
		} else if width > 0 {
			into[n].number = signed(body[:width])
		}
		body = body[width:]
	}
	return len(into), len(types) == 0 && len(body) == 0
}

// signed reads a big-endian integer in two's complement.
func signed(b []byte) int64 {
	n := int64(int8(b[0]))
	for _, next := range b[1:] {
		n = n<<8 | int64(next)
	}
	return n
}
