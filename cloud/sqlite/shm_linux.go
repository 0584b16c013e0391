//go:build linux && !mutant_shm_hole

package sqlite

// #include "shm_linux.h"
import "C"

import (
	"errors"
	"sync"
)

// allocateSharedMemory keeps a full disk from killing the process (see the C
// part). It holds for all that is opened from then on.
var allocateSharedMemory = sync.OnceValue(func() error {
	if C.shm_allocate() != 0 {
		return errors.New("this SQLite does not let its mmap be replaced: a full disk could kill the process")
	}
	return nil
})
