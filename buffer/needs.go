package buffer

import (
	"fmt"
	"strings"

	"touchline"
)

// needsTable says in a file which versions of touchline read it: a row for each
// schema that it has been through. Who meets a file of a schema that he does
// not know finds there what to ask for, instead of a number that only its
// makers understand. So this table stays as it is in all schemas to come.
const needsTable = `
CREATE TABLE needs (
	schema  INTEGER PRIMARY KEY,
	version TEXT NOT NULL
) STRICT;
`

// saveNeeds is the statement that writes the rows of all schemas there are.
func saveNeeds() string {
	rows := make([]string, len(schemas))
	for i, step := range schemas {
		rows[i] = fmt.Sprintf("(%d, '%s')", i+1, step.since)
	}
	return "REPLACE INTO needs (schema, version) VALUES " + strings.Join(rows, ", ") + ";"
}

// maxNeedsPages bounds what is read to find a row of needs: the texts of some
// 200 tables are 16 pages, and so are the rows of 3,000 schemas.
const maxNeedsPages = 16

// needs returns the version of touchline that brought a schema, as the file
// says it, or "" where it does not say it so that it can be read: the table is
// missing, is another one, or is damaged.
func (f *rawFile) needs(schema uint32) (version string) {
	var root uint32
	f.rows(1, maxNeedsPages, func(c *cell) {
		var row [4]column // type, name, table, root
		if n, _ := columns(c.record, row[:]); n == len(row) && string(row[0].bytes) == "table" && string(row[1].bytes) == "needs" {
			root = uint32(row[3].number) // a page that is not there has no rows
		}
	})
	f.rows(root, maxNeedsPages, func(c *cell) {
		var row [2]column // NULL for schema, version
		if n, _ := columns(c.record, row[:]); n == len(row) && c.key == int64(schema) && touchline.IsRelease(string(row[1].bytes)) {
			version = string(row[1].bytes)
		}
	})
	return version
}

// rows calls take for the rows of the table at root, as far as they can be read
// and are on the first pages of its tree: of a long one its beginning. It reads
// as many pages at most, and returns how many are left.
func (f *rawFile) rows(root uint32, pages int, take func(*cell)) int {
	page := make([]byte, pageBytes)
	if pages <= 0 || root == 0 || f.live().read(root, page) != nil {
		return pages
	}
	pages--
	at := f.live()
	at.local = true
	_ = at.cells(root, page, func(c *cell) {
		switch {
		case c.left != 0:
			pages = f.rows(c.left, pages, take)
		case c.record != nil:
			take(c)
		}
	})
	return pages
}

// A newerSchema is that of a file which this version can't read.
type newerSchema struct {
	schema uint32
	needs  string // the version that brought it, "" where the file does not say
}

// reader names who reads it.
func (n newerSchema) reader() string {
	if n.needs == "" {
		return "a newer touchline"
	}
	return "touchline " + n.needs + " or newer"
}

func (n newerSchema) String() string {
	return fmt.Sprintf("%s takes it back: its schema is %d, and touchline %s knows those up to %d", n.reader(), n.schema, touchline.Version, schemaVersion)
}
