package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"touchline/cloud"
	"touchline/config"
	"touchline/systemd"
)

// A reloader answers SIGHUP. log.level counts at once; what else differs in the
// settings is named, and needs a restart, which moves gateways to other nodes.
// Certificates are read again whenever their files change.
type reloader struct {
	hup   <-chan os.Signal
	load  func() (cloud.Config, error)
	level *slog.LevelVar
	log   *slog.Logger
	began cloud.Config // what holds, but for log.level
	does  string       // what systemctl status says
}

// start answers from now on, when the process has said that it is ready; the
// function that it returns ends that, and waits.
func (r *reloader) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var one sync.WaitGroup
	one.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.hup:
				r.reload()
			}
		}
	})
	return func() { cancel(); one.Wait() }
}

func (r *reloader) reload() {
	_ = systemd.Notify(systemd.Reloading()) // nobody listens: nobody waits
	status := r.does
	wanted, err := r.load()
	if err != nil {
		r.log.Error("settings are not reloaded: those of before hold", "error", err)
		status += "; SETTINGS NOT RELOADED (see the log)"
	} else {
		r.level.Set(wanted.Log.SlogLevel())
		holds := r.began
		holds.Log.Level = wanted.Log.Level
		restart := config.Changed(holds, wanted)
		r.log.Info("settings are reloaded", "level", wanted.Log.Level)
		if len(restart) > 0 {
			r.log.Warn("some settings differ and need a restart of this process", "settings", restart)
			status += "; restart for " + strings.Join(restart, ", ")
		}
	}
	_ = systemd.Notify(systemd.Ready, systemd.Status("%s", status))
}

// hangups returns what has a value each time that somebody sends SIGHUP, which
// ends nothing from then on. Asking twice before it is looked at is asking once.
func hangups() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}
