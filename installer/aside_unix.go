//go:build unix

package installer

import "os"

// aside gives a program a second name. The first one stays: no moment is without
// a program that a service could be started with.
func aside(from, to string) error { return os.Link(from, to) }
