//go:build linux

package uml

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// A WriteLog is what the kernel's log-writes target has logged: each write to
// a disk in the order in which they were durable, with the flushes, and the
// marks between them (Documentation/admin-guide/device-mapper/log-writes.rst).
// Writes appear when they have completed, together, before the flush that
// follows; those with FUA when they have completed.
type WriteLog struct {
	Entries []LogEntry
	file    *os.File
}

// A LogEntry is one of a log.
type LogEntry struct {
	Flush bool   // all entries before are durable
	FUA   bool   // this one is
	Mark  string // "" is no mark

	at    int64 // of the disk
	bytes int64
	data  int64 // where in the log
}

const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
	flagMark    = 1 << 3

	logEntryHead = 32 // four numbers of 64 bits
)

// OpenWriteLog reads the log that a guest wrote to a disk. Close frees it.
func OpenWriteLog(path string) (_ *WriteLog, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open log of writes: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	var head struct {
		Magic, Version, Entries uint64
		SectorBytes             uint32
	}
	if err := binary.Read(io.NewSectionReader(f, 0, 64), binary.LittleEndian, &head); err != nil {
		return nil, fmt.Errorf("read head of log %s: %w", path, err)
	}
	if head.Magic != logMagic || head.Version != logVersion || head.SectorBytes < sector {
		return nil, fmt.Errorf("read head of log %s: it is no log of writes: %+v", path, head)
	}
	l := &WriteLog{file: f}
	sectorBytes := int64(head.SectorBytes)
	at := sectorBytes
	text := make([]byte, sectorBytes)
	for i := range head.Entries {
		if _, err := f.ReadAt(text, at); err != nil {
			return nil, fmt.Errorf("read entry %d of log %s: %w", i, path, err)
		}
		number := func(n int) uint64 { return binary.LittleEndian.Uint64(text[8*n:]) }
		flags := number(2)
		e := LogEntry{
			Flush: flags&flagFlush != 0, FUA: flags&flagFUA != 0,
			at: int64(number(0)) * sectorBytes, bytes: int64(number(1)) * sectorBytes, data: at + sectorBytes,
		}
		at += sectorBytes
		switch {
		case flags&flagDiscard != 0:
			return nil, fmt.Errorf("entry %d of log %s discards: mount without it", i, path)
		case flags&flagMark != 0:
			word := text[logEntryHead:min(sectorBytes, logEntryHead+int64(number(3)))]
			e.Mark = string(bytes.TrimRight(word, "\x00"))
		default:
			at += e.bytes
		}
		l.Entries = append(l.Entries, e)
	}
	if len(l.Entries) == 0 {
		return nil, errors.New("the log of writes is empty")
	}
	return l, nil
}

// Close frees the log's file; its replays end with it.
func (l *WriteLog) Close() error { return l.file.Close() }

// read returns what an entry wrote.
func (l *WriteLog) read(e LogEntry) ([]byte, error) {
	data := make([]byte, e.bytes)
	if _, err := l.file.ReadAt(data, e.data); err != nil {
		return nil, fmt.Errorf("read log of writes: %w", err)
	}
	return data, nil
}
