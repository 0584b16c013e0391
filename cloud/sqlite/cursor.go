package sqlite

import (
	"container/list"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"

	"touchline"
)

// A cursor says which numbers of an epoch are stored.
type cursor struct {
	id      int64
	epoch   touchline.Epoch
	gateway int64 // whose epoch it is
	ranges  touchline.Ranges
}

const (
	// maxCursors bounds the cached cursors: about 250 bytes each with map
	// and list, so 1 MiB. Each connected gateway needs one or two; one that
	// is not cached costs a read of a few µs.
	maxCursors = 4096
	// maxCachedRanges bounds their ranges: 16 bytes each, so 16 MiB.
	// A healthy epoch has one to three.
	maxCachedRanges = 1 << 20
)

// A cursorCache keeps the cursors (least recently used dropped first) and the
// ids of gateways that Record met, so that an ordinary block costs one insert
// and no read. It is right only for the state of the file that its version
// names, and empty when in doubt. It is not safe for concurrent use.
type cursorCache struct {
	version  fileVersion
	cursors  map[touchline.Epoch]*list.Element
	recent   *list.List       // of *cursor, the last used in front
	ranges   int              // of all cursors
	gateways map[string]int64 // at most as many as are registered
}

// A fileVersion tells whether anybody else changed the file: SQLite's
// data_version rises with each commit of another connection, but compares
// only within one connection.
type fileVersion struct {
	connection  uint64
	dataVersion int64
}

func newCursorCache() cursorCache {
	var c cursorCache
	c.clear()
	return c
}

// clear forgets everything: after an error the file and the cache may differ.
func (c *cursorCache) clear() {
	*c = cursorCache{
		cursors:  make(map[touchline.Epoch]*list.Element),
		recent:   list.New(),
		gateways: make(map[string]int64),
	}
}

// keepIf clears the cache unless it is of this version.
func (c *cursorCache) keepIf(v fileVersion) {
	if c.version != v {
		c.clear()
		c.version = v
	}
}

// trim drops what exceeds the limits. It must not run while a batch is
// worked on, since the batch changes cursors in place.
func (c *cursorCache) trim() {
	for c.recent.Len() > maxCursors || c.ranges > maxCachedRanges {
		old := c.recent.Remove(c.recent.Back()).(*cursor)
		delete(c.cursors, old.epoch)
		c.ranges -= len(old.ranges)
	}
}

// add puts r into cur's ranges.
func (c *cursorCache) add(cur *cursor, r touchline.Range) {
	before := len(cur.ranges)
	cur.ranges.Add(r)
	c.ranges += len(cur.ranges) - before
}

// gateway returns the id of a registered gateway.
func (c *cursorCache) gateway(tx *sql.Tx, name string) (int64, error) {
	if id, ok := c.gateways[name]; ok {
		return id, nil
	}
	var id int64
	err := tx.QueryRow(`SELECT id FROM gateway WHERE name = ?`, name).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, errNotRegistered
	}
	if err != nil {
		return 0, fmt.Errorf("read gateway %q: %w", name, err)
	}
	c.gateways[name] = id
	return id, nil
}

// cursor returns the epoch's cursor, and makes it for this gateway where
// there is none.
func (c *cursorCache) cursor(tx *sql.Tx, epoch touchline.Epoch, gateway int64) (*cursor, error) {
	if e, ok := c.cursors[epoch]; ok {
		c.recent.MoveToFront(e)
		return e.Value.(*cursor), nil
	}
	// The row is made before it is read, so that nobody else can make it in
	// between, also in stores whose transactions do not lock the whole file.
	if _, err := tx.Exec(`INSERT INTO cursor (epoch, gateway, ranges) VALUES (?, ?, x'') ON CONFLICT DO NOTHING`, epoch[:], gateway); err != nil {
		return nil, fmt.Errorf("make cursor of epoch %s: %w", epoch, err)
	}
	cur := &cursor{epoch: epoch}
	var encoded []byte
	row := tx.QueryRow(`SELECT id, gateway, ranges FROM cursor WHERE epoch = ?`, epoch[:])
	if err := row.Scan(&cur.id, &cur.gateway, &encoded); err != nil {
		return nil, fmt.Errorf("read cursor of epoch %s: %w", epoch, err)
	}
	var err error
	if cur.ranges, err = parseRanges(encoded); err != nil {
		return nil, fmt.Errorf("read cursor of epoch %s: %w", epoch, err)
	}
	c.cursors[epoch] = c.recent.PushFront(cur)
	c.ranges += len(cur.ranges)
	return cur, nil
}

// appendRanges appends the ranges' stored form to dst: for each the distance
// from the last one's end, then its length less one, both as uvarint. One
// range is 2 to 16 bytes.
func appendRanges(dst []byte, ranges touchline.Ranges) []byte {
	var end uint64
	for _, r := range ranges {
		dst = binary.AppendUvarint(dst, r.First-end)
		dst = binary.AppendUvarint(dst, r.Last-r.First)
		end = r.Last
	}
	return dst
}

var errRanges = errors.New("stored ranges are damaged")

// parseRanges reads what appendRanges wrote, and nothing else.
func parseRanges(data []byte) (touchline.Ranges, error) {
	var ranges touchline.Ranges
	var end uint64
	for len(data) > 0 {
		gap, n := binary.Uvarint(data)
		if n <= 0 {
			return nil, errRanges
		}
		length, m := binary.Uvarint(data[n:])
		if m <= 0 {
			return nil, errRanges
		}
		data = data[n+m:]
		if gap > touchline.MaxSeq || length > touchline.MaxSeq || gap == 0 || end != 0 && gap == 1 {
			return nil, errRanges
		}
		r := touchline.Range{First: end + gap, Last: end + gap + length}
		if !r.Valid() {
			return nil, errRanges
		}
		ranges = append(ranges, r)
		end = r.Last
	}
	return ranges, nil
}
