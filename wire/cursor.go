package wire

import "encoding/binary"

// A cursor takes values from the front of data. After the first that is not
// there, bad is set and all that follow are zero, so that a run of reads needs
// one check.
type cursor struct {
	data []byte
	bad  bool
}

func (c *cursor) byte() byte {
	if len(c.data) == 0 {
		c.bad = true
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return b
}

func (c *cursor) uvarint() uint64 {
	if len(c.data) > 0 && c.data[0] < 0x80 {
		v := c.data[0]
		c.data = c.data[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(c.data)
	if n <= 0 {
		c.bad, c.data = true, nil
		return 0
	}
	c.data = c.data[n:]
	return v
}

// count takes a number of things of which each needs at least one byte of
// what is left or of its own stream, and none is more than limit.
func (c *cursor) count(limit int) int {
	n := c.uvarint()
	if n > uint64(limit) {
		c.bad, c.data = true, nil
		return 0
	}
	return int(n)
}

// bytes takes n bytes, which alias data.
func (c *cursor) bytes(n int) []byte {
	if n < 0 || n > len(c.data) {
		c.bad, c.data = true, nil
		return nil
	}
	b := c.data[:n:n]
	c.data = c.data[n:]
	return b
}

// uint64 takes eight bytes, little endian.
func (c *cursor) uint64() uint64 {
	if b := c.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}
