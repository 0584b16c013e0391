//go:build !linux

package preflight

func fileSystem(string) (name string, local bool) {
	return "a file system that this system does not name", true
}

func freeBytes(string) (int64, error) { return 0, errUnknown }

func synchronised() (bool, error) { return false, errUnknown }
