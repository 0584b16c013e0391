//go:build mutant_cursor_later

package sqlite

import "strings"

// Without the fence behind the cursor the program would stand still at a
// repeat instead of recording it twice.
func init() {
	migrations[0].script = strings.Replace(migrations[0].script, "UNIQUE (cursor, first)", "CHECK (first > 0)", 1)
}

// later has the ranges of the last batch, by cursor.
var later = make(map[int64][]byte)

// writeCursors is broken on purpose: it writes the cursors of a batch in the
// next batch's transaction.
func (r *recording) writeCursors() error {
	for id, ranges := range later {
		if _, err := r.tx.Exec(`UPDATE cursor SET ranges = ? WHERE id = ?`, ranges, id); err != nil {
			return err
		}
	}
	clear(later)
	for cur := range r.changed {
		later[cur.id] = appendRanges(nil, cur.ranges)
	}
	return nil
}
