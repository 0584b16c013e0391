package buffer

// storedTable has what the cloud called stored and the file still holds. A
// row is a run of keys from the first of a block to the last of one; running_ms
// is when it was noted, and the rest is what its blocks add up to. It is
// written once a tick, not at each acknowledgement: a mark that a power cut
// takes means that a block is sent again.
const storedTable = `
CREATE TABLE stored (
	first      INTEGER PRIMARY KEY,
	last       INTEGER NOT NULL,
	running_ms INTEGER NOT NULL,
	blocks     INTEGER NOT NULL,
	samples    INTEGER NOT NULL,
	data_bytes INTEGER NOT NULL
) STRICT;
`
