//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// reloadSignal returns what has a value each time that somebody asks for a
// reload; asking twice before it is looked at is asking once.
func reloadSignal() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}
