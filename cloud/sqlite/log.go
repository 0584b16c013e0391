package sqlite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// rewriteLog writes each byte of the log again and syncs it. Where a sync
// failed before the last process ended, the system may have what it was to
// write in its cache only and take it for written. SQLite would read it as
// committed, a gateway that sends it again would be told that it is stored,
// and a power cut would take it away. Within one process that can't happen:
// a commit that failed is written over. Nobody else may have the store open.
func rewriteLog(path string) error {
	log, err := os.OpenFile(path+"-wal", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the usual case: the last one who closes it leaves none
	}
	if err != nil {
		return err
	}
	ours, err := lockedStore(path)
	if ours != nil {
		err = rewrite(log)
		err = errors.Join(err, ours.Close())
	}
	return errors.Join(err, log.Close())
}

// lockedStore returns the database, locked, if it is a record store and nobody
// has it open.
func lockedStore(path string) (*os.File, error) {
	db, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	var head [100]byte // section 1.3 of https://www.sqlite.org/fileformat2.html
	_, err = db.ReadAt(head[:], 0)
	if errors.Is(err, io.EOF) || err == nil && binary.BigEndian.Uint32(head[68:]) != applicationID {
		return nil, db.Close() // its opening says what it is
	}
	var taken bool
	if err == nil {
		taken, err = lockDatabase(db)
	}
	if err != nil || !taken {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func rewrite(f *os.File) error {
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		n, err := f.ReadAt(buf, at)
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return fmt.Errorf("rewrite log: %w", err)
			}
			at += int64(n)
		}
		if errors.Is(err, io.EOF) {
			if err := f.Sync(); err != nil {
				return fmt.Errorf("rewrite log: %w", err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("rewrite log: %w", err)
		}
	}
}
