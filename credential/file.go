package credential

import (
	"fmt"
	"io"
	"io/fs"
	"os"
)

// readFile reads a file of at most limit bytes.
func readFile(file string, limit int64) (data []byte, info fs.FileInfo, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("read %s: it is no regular file", file)
	}
	if data, err = io.ReadAll(io.LimitReader(f, limit+1)); err != nil {
		return nil, nil, err
	}
	if int64(len(data)) > limit {
		return nil, nil, fmt.Errorf("read %s: it has more than %d bytes", file, limit)
	}
	return data, info, nil
}

// checkPrivate says whether a file that holds a secret is its owner's alone.
func checkPrivate(file string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s can be reached by other users (mode %04o): chmod 600 %s, and make a new one if somebody may have read it", file, mode, file)
	}
	return nil
}
