package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// syncs are the calls of fsync and fdatasync, counted by strace in a phase of
// their own: tracing slows a process down, so nothing else is measured then.
type syncs struct {
	GatewayPerSecond   number `json:"gateway_syncs_per_s"`
	CloudPerSecond     number `json:"cloud_syncs_per_s"`
	MessagesPerGateway number `json:"messages_per_gateway_sync"`
	MessagesPerCloud   number `json:"messages_per_cloud_sync"`
	WhyNot             string `json:"why_not,omitempty"`
}

// noSyncs says why they were not counted.
func noSyncs(why string) syncs {
	return syncs{unknown, unknown, unknown, unknown, why}
}

// countSyncs attaches strace to both processes for a while, under load.
func (b *bench) countSyncs(ctx context.Context, dir string, rate float64, duration time.Duration) (*syncs, error) {
	out := noSyncs("")
	strace, err := exec.LookPath("strace")
	if err != nil {
		out.WhyNot = "strace is not installed (apt-get install strace)"
		return &out, nil
	}
	o := b.load
	o.rate = rate
	_, err = b.phase(ctx, o, func(l *load) error {
		gateway, cloud := b.subject.Processes()
		began := time.Now()
		tracers := [2]*tracer{{target: gateway}, {target: cloud}}
		defer func() {
			for _, t := range tracers {
				t.process.stop()
			}
		}()
		for _, t := range tracers {
			if err := t.start(dir, strace); err != nil {
				return err
			}
		}
		_, acked0 := l.counts()
		if err := sleep(ctx, duration); err != nil {
			return err
		}
		_, acked1 := l.counts()
		var perSecond, perSync [2]number
		for i, t := range tracers {
			calls, err := t.count()
			if err != nil {
				out.WhyNot = err.Error()
				return nil
			}
			seconds := time.Since(began).Seconds()
			perSecond[i] = number(float64(calls) / seconds)
			perSync[i] = ratio(float64(acked1-acked0)/duration.Seconds()*seconds, float64(calls))
		}
		out = syncs{perSecond[0], perSecond[1], perSync[0], perSync[1], ""}
		return nil
	})
	return &out, err
}

// tracer is one strace.
type tracer struct {
	target  *process
	process *process
	output  string
}

func (t *tracer) start(dir, strace string) (err error) {
	t.output = filepath.Join(dir, "strace-"+t.target.name)
	t.process, err = startProcess(dir, "strace-"+t.target.name, strace,
		"-f", "-c", "-e", "trace=fsync,fdatasync", "-o", t.output, "-p", strconv.Itoa(t.target.pid))
	return err
}

// count ends the strace and returns how many calls it saw.
func (t *tracer) count() (int64, error) {
	if err := t.process.died(); err != nil { // it may not trace, in many containers
		return 0, fmt.Errorf("strace can't attach: %w", err)
	}
	t.process.stop()
	summary, err := os.ReadFile(t.output)
	if err != nil {
		return 0, fmt.Errorf("read summary of strace: %w", err)
	}
	return parseStrace(string(summary))
}

// parseStrace adds up the calls in the table that strace -c writes: % time,
// seconds, usecs/call, calls, errors where there are any, and the name.
func parseStrace(summary string) (int64, error) {
	var sum int64
	for line := range strings.Lines(summary) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		switch fields[len(fields)-1] {
		case "fsync", "fdatasync":
		default:
			continue
		}
		calls, err := strconv.ParseInt(fields[3], 10, 64)
		if err != nil {
			return 0, errors.New("strace wrote a summary that is not understood: " + strings.TrimSpace(line))
		}
		sum += calls
	}
	return sum, nil
}
