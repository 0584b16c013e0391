//go:build !linux || mutant_shm_hole

package sqlite

// allocateSharedMemory is for Linux, where clouds run. The mutation check of
// package e2e builds a program without it, and holds that a full disk kills it.
func allocateSharedMemory() error { return nil }
