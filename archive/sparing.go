package archive

import (
	"context"
	"fmt"
	"io"

	"touchline/internal/folder"
)

// Sparing writes to a file as long as its disk has room beyond a reserve.
type Sparing struct {
	ctx       context.Context
	to        io.Writer
	dir       string
	reserve   int64
	asked     bool
	unchecked int // bytes that were written since the disk was asked
}

// spareStep is how much is written from one look at the disk to the next; as
// much is left beyond the reserve, for what others write meanwhile.
const spareStep = 256 << 10

// NewSparing returns a writer to a file in dir that ends with an error before
// less than reserve is free there, or when ctx ends.
func NewSparing(ctx context.Context, to io.Writer, dir string, reserve int64) *Sparing {
	return &Sparing{ctx: ctx, to: to, dir: dir, reserve: reserve}
}

// Write implements io.Writer.
func (s *Sparing) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if s.unchecked += len(p); !s.asked || s.unchecked >= spareStep {
		free, err := folder.Free(s.dir)
		if err != nil {
			return 0, err
		}
		if free-int64(len(p))-spareStep < s.reserve {
			return 0, fmt.Errorf("the disk of %s has %d bytes free, of which %d must stay free: make room, or use another disk", s.dir, free, s.reserve+spareStep)
		}
		s.asked, s.unchecked = true, 0
	}
	return s.to.Write(p)
}
