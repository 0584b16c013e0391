//go:build !windows

package installer

import (
	"context"
	"io"
	"os"

	"touchline/systemd"
)

// Run runs a program that says when it is ready. systemd and launchd start the
// program itself, and see how it ends.
func Run(ctx context.Context, program func(ctx context.Context, ready func()) error) error {
	return program(ctx, func() {})
}

// LogOutput is where a service's log goes: systemd and launchd keep what it
// writes to standard error.
func LogOutput() io.Writer { return systemd.Log(os.Stderr) }
