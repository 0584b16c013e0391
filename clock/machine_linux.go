package clock

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"touchline"
)

// bootIDFile has a UUID that the kernel draws at each boot (random(4)).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// From linux/time.h and linux/timex.h; package syscall lacks them.
const (
	clockBoottime = 7
	staUnsync     = 0x0040
	timeError     = 5
)

// machine returns Linux's clocks.
func machine() (sources, error) {
	text, err := os.ReadFile(bootIDFile)
	if err != nil {
		return sources{}, fmt.Errorf("read boot id: %w", err)
	}
	var boot touchline.Boot
	digits := strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")
	if n, err := hex.Decode(boot[:], []byte(digits[:min(len(digits), 2*len(boot))])); err != nil || n != len(boot) {
		return sources{}, fmt.Errorf("read boot id: %s has %.50q: want a UUID", bootIDFile, text)
	}
	if _, err := boottime(); err != nil {
		return sources{}, fmt.Errorf("read time since power-on: %w", err)
	}
	return sources{boot: boot, now: time.Now, wall: time.Now, uptime: uptime, synchronised: synchronised}, nil
}

func uptime() time.Duration {
	d, err := boottime()
	if err != nil {
		panic("BUG: CLOCK_BOOTTIME was there and is gone: " + err.Error())
	}
	return d
}

// boottime reads CLOCK_BOOTTIME (clock_gettime(2)): it counts through sleep,
// and nothing sets it.
func boottime() (time.Duration, error) {
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0, errno
	}
	return time.Duration(ts.Nano()), nil
}

// synchronised asks the kernel (adjtimex(2)): a time service clears STA_UNSYNC,
// and whoever sets the clock by hand sets it. chrony does so with rtcsync only,
// which distributions have in its configuration. Where asking is not allowed
// the answer is no.
func synchronised() bool {
	var t syscall.Timex
	state, err := syscall.Adjtimex(&t)
	return err == nil && state != timeError && t.Status&staUnsync == 0
}
