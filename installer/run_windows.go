package installer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/kardianos/service"
)

// startPatience is how long the service control manager is kept waiting for a
// start. A long recovery goes on after it; if it fails, the process dies.
const startPatience = 20 * time.Second

// Run runs a program that says when it is ready, under the service control
// manager where that started it. A start that fails is answered with its
// error. A program that dies later ends the process without saying that the
// service has stopped, so that the manager sees a crash and starts it again.
func Run(ctx context.Context, program func(ctx context.Context, ready func()) error) error {
	if service.Interactive() {
		return program(ctx, func() {})
	}
	ctx, stop := context.WithCancel(ctx)
	p := &underManager{ctx: ctx, stop: stop, program: program, ended: make(chan error, 1)}
	s, err := service.New(p, &service.Config{Name: name})
	if err != nil {
		return err
	}
	return s.Run()
}

type underManager struct {
	ctx     context.Context
	stop    context.CancelFunc
	program func(context.Context, func()) error
	ended   chan error // of the program; one
}

func (p *underManager) Start(service.Service) error {
	ready := make(chan struct{})
	go func() { p.ended <- p.program(p.ctx, sync.OnceFunc(func() { close(ready) })) }()
	timer := time.NewTimer(startPatience)
	defer timer.Stop()
	select {
	case err := <-p.ended:
		return errors.Join(err, errors.New("it ended as it started"))
	case <-ready:
	case <-timer.C:
	}
	go p.watch()
	return nil
}

// watch dies with the program, unless it was told to end.
func (p *underManager) watch() {
	err := <-p.ended
	if p.ctx.Err() == nil {
		os.Exit(1) // it has logged why
	}
	p.ended <- err
}

func (p *underManager) Stop(service.Service) error {
	p.stop()
	return <-p.ended
}

// LogOutput is where a service's log goes: the event log, a line an event.
func LogOutput() io.Writer {
	if service.Interactive() {
		return os.Stderr
	}
	s, err := service.New(nothing{}, &service.Config{Name: name})
	if err != nil {
		return os.Stderr
	}
	to, err := s.SystemLogger(nil)
	if err != nil {
		return os.Stderr
	}
	return eventLog{to}
}

// eventLog takes lines of slog's text and JSON handlers.
type eventLog struct{ to service.Logger }

func (e eventLog) Write(line []byte) (int, error) {
	write := e.to.Info
	for _, level := range []slog.Level{slog.LevelWarn, slog.LevelError} {
		if bytes.Contains(line, []byte("level="+level.String()+" ")) || bytes.Contains(line, []byte(`"level":"`+level.String()+`"`)) {
			write = e.to.Warning
			if level == slog.LevelError {
				write = e.to.Error
			}
		}
	}
	return len(line), write(string(bytes.TrimSpace(line)))
}
