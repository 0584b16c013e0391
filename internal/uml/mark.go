//go:build linux

package uml

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// A Marker writes marks into the log of a log-writes target, in a guest: what
// was durable before the mark was made is before it in the log. It may be used
// by one goroutine at a time; Close frees it.
type Marker struct {
	control *os.File
	device  string
}

// NewMarker returns the marker of a device of the device mapper, by name.
func NewMarker(device string) (*Marker, error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open device mapper: %w", err)
	}
	return &Marker{control: control, device: device}, nil
}

// The kernel's struct dm_ioctl and DM_TARGET_MSG (linux/dm-ioctl.h): `dmsetup
// message` does the same, in a process for each mark.
const (
	dmHeadBytes = 312        // struct dm_ioctl
	dmNameAt    = 48         // its name, 128 bytes
	dmTargetMsg = 0xC138FD0E // _IOWR(0xfd, 14, struct dm_ioctl)
	dmNameBytes = 128
)

// Mark writes a mark: a word of at most 200 bytes.
func (m *Marker) Mark(word string) error {
	message := "mark " + word + "\x00"
	request := make([]byte, dmHeadBytes, dmHeadBytes+8+len(message))
	request = append(request, make([]byte, 8)...) // struct dm_target_msg: to sector 0
	request = append(request, message...)
	order := binary.NativeEndian
	order.PutUint32(request[0:], 4) // version 4.0.0
	order.PutUint32(request[12:], uint32(len(request)))
	order.PutUint32(request[16:], dmHeadBytes) // where the data starts
	copy(request[dmNameAt:dmNameAt+dmNameBytes-1], m.device)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, m.control.Fd(), dmTargetMsg, uintptr(unsafe.Pointer(&request[0])))
	if errno != 0 {
		return fmt.Errorf("mark %q in the log of %s: %w", word, m.device, errno)
	}
	return nil
}

// Close frees the marker.
func (m *Marker) Close() error { return m.control.Close() }
