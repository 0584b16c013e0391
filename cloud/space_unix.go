//go:build linux || darwin

package cloud

import "syscall"

// diskSpace returns the size of the file system that has dir, and what is free
// of it for who is not root.
func diskSpace(dir string) (size, free float64, ok bool) {
	var st syscall.Statfs_t
	if dir == "" || syscall.Statfs(dir, &st) != nil {
		return 0, 0, false
	}
	return float64(st.Blocks) * float64(st.Bsize), float64(st.Bavail) * float64(st.Bsize), true
}
