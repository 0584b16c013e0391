package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	sqlite3 "github.com/mattn/go-sqlite3"
)

// errDamaged is wrapped by what this package itself finds wrong with a file.
var errDamaged = errors.New("file is damaged")

// isDamage says whether err means that the content of the file is wrong. An
// I/O error, a lock, a permission or a full disk does not; but SQLite calls it
// an I/O error, too, that a file ends within a page.
func isDamage(err error) bool {
	var e sqlite3.Error
	if errors.As(err, &e) {
		return e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB || e.ExtendedCode == sqlite3.ErrIoErrShortRead
	}
	return errors.Is(err, errDamaged)
}

// isDamageAtOpen also takes for damage what can't be another's fault while a
// file is opened: there all statements are constant, and nothing is written.
func isDamageAtOpen(err error) bool {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrError || e.Code == sqlite3.ErrSchema) {
		return true
	}
	return isDamage(err)
}

// kind says why a file was set aside; it is part of its name.
type kind string

const (
	sound   kind = ""        // it was not
	damaged kind = "damaged" // its blocks are salvaged
	foreign kind = "foreign" // another program's
	newer   kind = "newer"   // of a schema that this version does not know
	taken   kind = "taken"   // was newer, and its blocks are here now
)

// fate says what else becomes of a file as it is set aside.
func (k kind) fate() string {
	if k == damaged {
		return " and saves what can be read"
	}
	return " untouched, and begins a new one"
}

// A finding is what inspect says of a file.
type finding struct {
	kind    kind
	version uint32 // of the schema, of a newer file
	needs   string // the version of touchline that reads it, of a newer file that says so
	why     string
}

// inspect looks at a database and its log before SQLite does. SQLite would
// delete the log of an emptied file, write a new head into some others, and
// take a log whose middle is damaged for one that ends there. An error means
// that the file can't be read, which says nothing about it.
func inspect(path string) (finding, error) {
	walBytes, err := sizeOf(path + "-wal")
	if err != nil {
		return finding{}, fmt.Errorf("look at log: %w", err)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && walBytes == 0:
		return finding{}, nil
	case errors.Is(err, os.ErrNotExist):
		return finding{kind: damaged, why: fmt.Sprintf("it is missing, and its log holds %d bytes", walBytes)}, nil
	case err != nil:
		return finding{}, fmt.Errorf("look at database: %w", err)
	case info.IsDir():
		return finding{kind: foreign, why: "it is a folder"}, nil
	case !info.Mode().IsRegular():
		return finding{kind: foreign, why: "it is not a file"}, nil
	case info.Size() == 0 && walBytes == 0:
		return finding{}, nil
	case info.Size() == 0:
		return finding{kind: damaged, why: fmt.Sprintf("it is empty, and its log holds %d bytes", walBytes)}, nil
	}
	f, err := openRaw(path)
	if err != nil {
		return finding{}, fmt.Errorf("look at database: %w", err)
	}
	defer f.close()
	found, err := f.inspect()
	if err == nil && found.kind == damaged && walBytes == 0 && info.Size() <= madeBytes {
		if unmade, err := isUnmade(path); unmade || err != nil {
			return finding{}, err
		}
	}
	return found, err
}

// madeBytes is above what is written before the first tables are: two pages.
const madeBytes = 4 * pageBytes

// journalMagic begins a rollback journal that counts (SQLite's file format,
// section 3).
const journalMagic = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"

// isUnmade says whether a power cut left a database in its making: beside it is
// a journal that says that it had no pages before. Whatever the file holds, torn
// or not, was never committed, and SQLite cuts it to nothing.
func isUnmade(path string) (bool, error) {
	f, err := os.Open(path + "-journal")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at journal: %w", err)
	}
	defer f.Close()
	var head [20]byte
	switch _, err := io.ReadFull(f, head[:]); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read journal: %w", err)
	}
	return string(head[:8]) == journalMagic && binary.BigEndian.Uint32(head[16:]) == 0, nil
}

// sizeOf returns the size of a file, 0 if there is none.
func sizeOf(path string) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Fields of the head that are the same in every buffer: section 1.3.
var headFields = []struct {
	at   int
	want string
	what string
}{
	{0, "SQLite format 3\x00", "it does not begin as a SQLite database does"},
	{16, "\x10\x00\x02\x02\x00\x40\x20\x20", "its head has another page size or format"},
	{44, "\x00\x00\x00\x04", "its head has another schema format"},
	{56, "\x00\x00\x00\x01", "its head has another text encoding"},
	{64, "\x00\x00\x00\x01", "its head has another vacuum mode"},
}

const magicBytes = 16

func (f *rawFile) inspect() (finding, error) {
	var head [100]byte
	n, err := f.db.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return finding{}, fmt.Errorf("read database: %w", err)
	}
	if n < len(head) {
		return finding{kind: damaged, why: fmt.Sprintf("it has %d bytes only", n)}, nil
	}
	if string(head[:magicBytes]) != headFields[0].want {
		return finding{kind: damaged, why: headFields[0].what}, nil
	}
	page := make([]byte, pageBytes)
	if err := f.live().read(1, page); err != nil {
		return finding{}, fmt.Errorf("read database: %w", err)
	}
	// Of the page as the log has it: a power cut after the making of the tables
	// and before the first checkpoint leaves them there alone.
	version, id := binary.BigEndian.Uint32(page[60:]), binary.BigEndian.Uint32(page[68:])
	tables := binary.BigEndian.Uint16(page[103:])
	switch {
	case id == 0 && version == 0 && page[100] == leafTable && tables == 0:
		return finding{}, nil // its making was cut short, before anything was in it
	case id == applicationID && version >= 1 && version <= uint32(schemaVersion): // an older one is migrated
	case hasOurTables(page): // so it is the head that is wrong
		return finding{kind: damaged, why: fmt.Sprintf("its head has application id %#x and schema %d", id, version)}, nil
	case id == applicationID && version > uint32(schemaVersion):
		by := newerSchema{version, f.needs(version)}
		return finding{kind: newer, version: version, needs: by.needs, why: by.String()}, nil
	default:
		return finding{kind: foreign, why: "it is a SQLite database, but not a touchline buffer"}, nil
	}
	for _, field := range headFields {
		from := page
		if field.at < 44 { // what SQLite looks at before it looks at the log
			from = head[:]
		}
		if string(from[field.at:][:len(field.want)]) != field.want {
			return finding{kind: damaged, why: field.what}, nil
		}
	}
	if f.log.damage != nil {
		return finding{kind: damaged, why: f.log.damage.Error()}, nil
	}
	return finding{}, nil
}

// hasOurTables says whether page 1 has the schema of one of our versions.
func hasOurTables(page []byte) bool {
	for version := 1; version <= schemaVersion; version++ {
		if hasTables(page, schemaOf(version)) {
			return true
		}
	}
	return false
}

// hasTables says whether page 1 has a schema, word for word and nothing
// besides: its tables, and an index for each unique column.
func hasTables(page []byte, schema string) bool {
	entries := strings.Count(schema, "CREATE TABLE") + strings.Count(schema, " UNIQUE")
	if int(binary.BigEndian.Uint16(page[103:])) != entries {
		return false
	}
	for statement := range strings.SplitSeq(schema, ";\n") {
		statement = strings.TrimSpace(statement)
		if strings.HasPrefix(statement, "CREATE") && !bytes.Contains(page, []byte(statement)) {
			return false
		}
	}
	return true
}
