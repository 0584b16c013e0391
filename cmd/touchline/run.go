package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spf13/cobra"

	"touchline/daemon"
	"touchline/installer"
	"touchline/systemd"
)

func runCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the gateway until SIGTERM or Ctrl-C",
		Long: `Runs the gateway until SIGTERM or Ctrl-C. SIGHUP has it read its settings again:
[uplink], sensors.acl, sensors.allow_anonymous, sensors.unknown, sensors.broker,
buffer.import_keys and log.level count at once, and no sensor notices; what else
has changed is named in the log and by ` + "`touchline status`" + `, and needs a restart.
Certificates, tokens and sensors' keys are read again whenever they change.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := installer.Run(cmd.Context(), s.run)
			if err != nil { // `systemctl status` shows why, beside the log
				_ = systemd.Notify(systemd.Status("%v", err))
			}
			return err
		},
	}
}

// run is the gateway's life; ready is called once the listeners are bound.
func (s *settings) run(ctx context.Context, ready func()) error {
	hup := reloadSignal() // from now on SIGHUP ends nothing
	c, err := s.load()
	if err != nil {
		return err
	}
	var level slog.LevelVar
	level.Set(c.Log.SlogLevel())
	d, err := daemon.Open(ctx, c, c.Log.LoggerAt(installer.LogOutput(), &level))
	if err != nil {
		return err
	}
	ready()
	reloading, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-reloading.Done():
				return
			case <-hup:
				if c, err := d.Reload(s.load); err == nil { // else it has said so
					level.Set(c.Log.SlogLevel())
				}
			}
		}
	}()
	err = d.Run(ctx)
	stop()
	<-ended
	return errors.Join(err, d.Close())
}
