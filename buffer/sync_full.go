//go:build !mutant_sync_normal

package buffer

// Each commit is synced before it returns: synchronous=FULL, which SQLite
// calls 2. The power cuts of package e2e also meet a program built without,
// and hold that they find its losses.
const synchronous, synchronousLevel = "FULL", "2"
