package daemon

import (
	"context"
	"sync"
)

// A slot holds a part of the gateway that can be replaced while it runs.
// Any goroutine may call get and put.
type slot[P interface{ run(context.Context) error }] struct {
	mu      sync.Mutex // covers what follows
	part    P
	changed chan struct{} // closed when part is another one
}

func (s *slot[P]) get() P {
	part, _ := s.look()
	return part
}

func (s *slot[P]) look() (P, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.part, s.changed
}

// put makes part the one that counts. run ends the one before, and then runs it.
func (s *slot[P]) put(part P) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.part = part
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// run runs what is in the slot, one part at a time, until ctx ends or one fails
// by itself.
func (s *slot[P]) run(ctx context.Context) error {
	for {
		part, changed := s.look()
		if err := runUntil(ctx, changed, part.run); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// runUntil ends run when changed is closed, and waits for its end.
func runUntil(ctx context.Context, changed <-chan struct{}, run func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-changed:
		cancel()
		return <-ended
	}
}
