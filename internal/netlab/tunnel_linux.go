package netlab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Conditions are those of a Tunnel, the same in both directions. The zero value
// is a perfect link.
type Conditions struct {
	Delay  time.Duration // one way
	Jitter time.Duration // on top of it, uniform; does not reorder
	Loss   float64       // share of packets that vanish

	// Reorder is the share of packets that overtake those waiting out Delay.
	Reorder float64

	// BitsPerSecond is the rate, 0 for no limit; QueueBytes is what may wait
	// for it before the newest is dropped, 0 for defaultQueueBytes.
	BitsPerSecond, QueueBytes int
}

// defaultQueueBytes is a modem's: 64 KiB are 2 s at 256 kbit/s.
const defaultQueueBytes = 64 << 10

// maxPacket is above the MTU of a TUN device (1,500).
const maxPacket = 2048

// A Tunnel is a link between two namespaces that exists in this process: packets
// come out of one TUN device, wait, are lost or reordered as Conditions say,
// and go into the other. The seed decides about each packet in its turn, in each
// direction by itself. Kernels without netem can have bad links like this.
type Tunnel struct {
	ways  [2]*way
	ended sync.WaitGroup
	once  sync.Once
}

// NewTunnel joins two namespaces. Close ends it, and takes both devices away.
func NewTunnel(a, b End, seed uint64, c Conditions) (*Tunnel, error) {
	in, err := openTUN(a)
	if err != nil {
		return nil, err
	}
	out, err := openTUN(b)
	if err != nil {
		in.Close()
		return nil, err
	}
	t := &Tunnel{ways: [2]*way{newWay(in, out, seed, 0), newWay(out, in, seed, 1)}}
	t.Set(c)
	for _, w := range t.ways {
		t.ended.Go(w.take)
		t.ended.Go(w.deliver)
	}
	return t, nil
}

// Close ends the link. It may be called twice.
func (t *Tunnel) Close() error {
	t.once.Do(func() {
		for _, w := range t.ways {
			w.in.Close()
			close(w.closed)
		}
		t.ended.Wait()
	})
	return nil
}

// Set changes the conditions, for packets from now on.
func (t *Tunnel) Set(c Conditions) {
	for _, w := range t.ways {
		w.mu.Lock()
		w.conditions = c
		w.mu.Unlock()
	}
}

// Cut lets everything vanish that goes from the first end to the second
// (forth), or back, until Cut says otherwise.
func (t *Tunnel) Cut(forth, back bool) {
	for i, cut := range []bool{forth, back} {
		t.ways[i].mu.Lock()
		t.ways[i].cut = cut
		t.ways[i].mu.Unlock()
	}
}

// TunnelStats counts packets.
type TunnelStats struct{ Carried, Lost, Overflowed, Overtook uint64 }

// Stats returns the counts from the first end to the second, and back.
func (t *Tunnel) Stats() (forth, back TunnelStats) { return t.ways[0].counts(), t.ways[1].counts() }

// openTUN makes the device of one end. The file is read and written from
// outside the namespace.
func openTUN(e End) (*os.File, error) {
	var file *os.File
	err := e.In.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%w: open /dev/net/tun: %w", ErrRefused, err)
		}
		request, err := unix.NewIfreq(e.Device)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make TUN device %s: %w", e.Device, err)
		}
		file = os.NewFile(uintptr(fd), e.Device)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := e.up(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
