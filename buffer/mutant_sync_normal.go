//go:build mutant_sync_normal

package buffer

// The connection is broken on purpose: SQLite does not sync what it commits,
// only what it copies from the log into the database.
const synchronous, synchronousLevel = "NORMAL", "1"
