package installer

import "os"

// aside renames a program: one that runs can be renamed, and not replaced.
func aside(from, to string) error { return os.Rename(from, to) }
