//go:build unix

package buffer

// defaultVFS keeps the index of the log in memory instead of a mapped file,
// which kills the process with SIGBUS on some full disks; it also locks other
// processes out.
const defaultVFS = "unix-excl"
