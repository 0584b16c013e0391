// Package filelock locks files between processes: flock(2) on Unix, LockFileEx
// on Windows. A lock ends with the last handle of its file, however the process
// ends. It holds no state and starts nothing.
package filelock

import "errors"

// ErrLocked says that another process, or another opening of the file, has it.
var ErrLocked = errors.New("the file is locked by another process")
