//go:build !mutant_cursor_later

package sqlite

import "fmt"

// writeCursors writes the cursors that the batch changed, each once, in the
// transaction of its blocks. The mutation check of package e2e builds a
// program that writes them later, and holds that its audit finds what is then
// recorded twice.
func (r *recording) writeCursors() error {
	var encoded []byte
	for cur := range r.changed {
		encoded = appendRanges(encoded[:0], cur.ranges)
		if _, err := r.tx.Exec(`UPDATE cursor SET ranges = ? WHERE id = ?`, encoded, cur.id); err != nil {
			return fmt.Errorf("update cursor of epoch %s: %w", cur.epoch, err)
		}
	}
	return nil
}
