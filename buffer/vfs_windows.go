package buffer

// defaultVFS is SQLite's own on Windows: it has no other that keeps the index of
// the log out of a mapped file, and a full NTFS leaves no hole in one.
const defaultVFS = "win32"
