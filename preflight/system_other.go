//go:build !linux

package preflight

import "errors"

func fileSystem(string) (name string, local bool) {
	return "a file system that this system does not name", true
}

func synchronised() (bool, error) { return false, errors.New("this system does not say") }
