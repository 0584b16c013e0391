package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// The write-ahead log as SQLite leaves it on the disk:
// https://www.sqlite.org/fileformat2.html, section 4.
const (
	logHeadBytes   = 32
	frameHeadBytes = 24
	frameBytes     = frameHeadBytes + pageBytes
	logMagic       = 0x377f0682 // the last bit says in which byte order checksums are
)

// A rawLog is what a log holds, damaged or not: which page each frame has, and
// how far the log is in force, that is, how far SQLite would believe it.
type rawLog struct {
	r       io.ReaderAt
	frames  []rawFrame
	byPage  map[uint32][]int32 // frames of a page, in order
	inForce int                // frames up to the last commit that holds
	damage  error              // why frames beyond inForce were durable once; nil if they may never have been
}

type rawFrame struct {
	page   uint32
	commit bool // the last of a transaction
	ours   bool // of the log's present round: not left over from an earlier one
}

// version returns the youngest frame of a page among the first limit, or -1.
func (l *rawLog) version(page uint32, limit int) int {
	list := l.byPage[page]
	i, _ := slices.BinarySearch(list, int32(limit))
	if i == 0 {
		return -1
	}
	return int(list[i-1])
}

// end returns the number of frames up to the end of the transaction that
// frame i belongs to.
func (l *rawLog) end(i int) int {
	for ; i < len(l.frames); i++ {
		if l.frames[i].commit {
			return i + 1
		}
	}
	return len(l.frames)
}

func (l *rawLog) readFrame(i int, page []byte) error {
	_, err := l.r.ReadAt(page, logHeadBytes+int64(i)*frameBytes+frameHeadBytes)
	return err
}

// readLog reads a log of size bytes beside a database of so many pages.
//
// A log that ends in frames which do not hold is no damage: a power cut in the
// middle of a commit leaves that, and of the frames of a commit that failed
// some may lie behind those that were written over it. But frames are chained
// by their checksums, and a transaction is begun only when the one before it
// is durable: where the chain is broken, and behind the break a second
// transaction goes on from a first, the first was durable, and with it all
// that is before it.
func readLog(r io.ReaderAt, size int64, pages uint32) (*rawLog, error) {
	l := &rawLog{r: r, byPage: make(map[uint32][]int32)}
	count := int((size - logHeadBytes) / frameBytes)
	if size < logHeadBytes || count == 0 {
		return l, nil
	}
	var head [logHeadBytes]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("read head of the log: %w", err)
	}
	order, holds := checkLogHead(&head)
	salts := string(head[16:24])
	chain := readSum(head[24:])
	frame := make([]byte, frameBytes)
	l.frames = make([]rawFrame, 0, count)
	unbroken, commits := holds, 0
	for i := range count {
		if _, err := r.ReadAt(frame, logHeadBytes+int64(i)*frameBytes); err != nil {
			return nil, fmt.Errorf("read frame %d of the log: %w", i, err)
		}
		if i == 0 && !holds {
			salts = string(frame[8:16])
		}
		f := rawFrame{page: binary.BigEndian.Uint32(frame), commit: binary.BigEndian.Uint32(frame[4:]) != 0}
		f.ours = string(frame[8:16]) == salts && f.page > 0 && int64(f.page) <= int64(pages)+int64(count)
		sum := chain.over(order, frame[:8]).over(order, frame[frameHeadBytes:])
		chain = readSum(frame[16:])
		linked := f.ours && sum == chain
		if f.ours {
			l.byPage[f.page] = append(l.byPage[f.page], int32(i))
		}
		l.frames = append(l.frames, f)
		if unbroken = unbroken && linked; unbroken {
			if f.commit {
				l.inForce = i + 1
			}
			continue
		}
		if !linked {
			commits = 0
		}
		if f.ours && f.commit {
			if commits++; linked && commits >= 2 && l.damage == nil {
				l.damage = fmt.Errorf("its log is broken behind frame %d, and goes on later", l.inForce)
			}
		}
	}
	if !holds {
		l.damage = errors.New("the head of its log does not hold")
	}
	return l, nil
}

// checkLogHead returns the byte order of checksums, and whether the head holds.
// It is written and synced by itself, and within one sector.
func checkLogHead(head *[logHeadBytes]byte) (binary.ByteOrder, bool) {
	var order binary.ByteOrder = binary.LittleEndian
	magic := binary.BigEndian.Uint32(head[:])
	if magic == logMagic|1 {
		order = binary.BigEndian
	}
	return order, magic&^1 == logMagic && binary.BigEndian.Uint32(head[8:]) == pageBytes &&
		logSum{}.over(order, head[:24]) == readSum(head[24:])
}

// logSum is the checksum of section 4.2.
type logSum [2]uint32

func readSum(b []byte) logSum {
	return logSum{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
}

func (s logSum) over(order binary.ByteOrder, data []byte) logSum {
	for ; len(data) >= 8; data = data[8:] {
		s[0] += order.Uint32(data) + s[1]
		s[1] += order.Uint32(data[4:]) + s[0]
	}
	return s
}
