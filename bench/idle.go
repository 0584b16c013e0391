package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// idleFigures are what a gateway costs a node that is connected and says nothing:
// the difference between a node with all of them and the same node with none, by
// the number of gateways. The kernel's share is not in them.
type idleFigures struct {
	Store       string `json:"store"`
	Connections int    `json:"connections"`
	Goroutines  number `json:"goroutines_each"`
	Heap        number `json:"heap_bytes_each"`  // live, after a garbage collection
	Stacks      number `json:"stack_bytes_each"` // of goroutines
	Resident    number `json:"resident_bytes_each"`
	ResidentMax number `json:"resident_max_bytes_each"`
	BaseMiB     number `json:"resident_mib_without"`
	CPU         number `json:"cpu_share_of_one_core"` // for heartbeats
	ConnectedIn number `json:"connected_in_s"`
	Pings       int64  `json:"pings_answered"`
	Lost        int64  `json:"lost"`
}

// memory is what a node takes at one time.
type memory struct {
	heap, stacks, resident, goroutines float64
	collections                        float64
}

func (n *cloudNode) memory(ctx context.Context) (memory, error) {
	m, err := n.metrics(ctx)
	if err != nil {
		return memory{}, err
	}
	var out memory
	var errs []error
	for _, f := range []struct {
		series string
		to     *float64
	}{
		{"go_memstats_heap_alloc_bytes", &out.heap}, {"go_memstats_stack_inuse_bytes", &out.stacks},
		{"process_resident_memory_bytes", &out.resident}, {"go_goroutines", &out.goroutines}, {"go_gc_duration_seconds_count", &out.collections},
	} {
		var err error
		*f.to, err = m.value(f.series)
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

const (
	// restCollections is after how many garbage collections a node is at rest: a
	// stack that has grown to 16 KiB shrinks by half in each.
	restCollections = 4
	// Go collects after two minutes at the latest, also where nothing is allocated.
	restTimeout = restCollections * 130 * time.Second
)

// rest watches a node until it has collected garbage so often, and returns what it took then: the
// heap right behind a collection, and the resident size at each look since the
// last but one.
func (n *cloudNode) rest(ctx context.Context, collections int) (at memory, resident []float64, err error) {
	first, err := n.memory(ctx)
	if err != nil {
		return at, nil, err
	}
	if collections == 0 {
		return first, []float64{first.resident}, nil
	}
	last := first
	for deadline := time.Now().Add(restTimeout); time.Now().Before(deadline); {
		now, err := n.memory(ctx)
		if err != nil {
			return at, nil, errors.Join(err, n.process.died())
		}
		done := int(now.collections - first.collections)
		if done >= collections-1 {
			resident = append(resident, now.resident)
		}
		if now.collections > last.collections && done >= collections {
			return now, resident, nil
		}
		last = now
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return at, nil, err
		}
	}
	return at, nil, fmt.Errorf("the node collected garbage less than %d times in %s", collections, restTimeout)
}

// holders are the processes that hold the gateways' ends.
const holders = 2

// measureIdle connects gateways to a new node and measures it at rest.
func (s *cloudSettings) measureIdle(ctx context.Context, dir, store string) (f idleFigures, err error) {
	f = idleFigures{Store: store, Connections: s.connections}
	say("%s: %d gateways are registered", store, s.connections)
	n, err := startNode(ctx, s.cloud, dir, store, s.connections)
	if err != nil {
		return f, err
	}
	defer n.stop()
	base, err := n.memory(ctx)
	if err != nil {
		return f, err
	}
	say("%s: they connect", store)
	began := time.Now()
	list := make([]*holder, 0, holders)
	defer func() {
		for _, h := range list {
			h.stop()
		}
	}()
	for i := range holders {
		from, to := s.connections*i/holders, s.connections*(i+1)/holders
		h, err := startHolder(holding{Address: n.address, Roll: n.roll, From: from, Count: to - from})
		if err != nil {
			return f, err
		}
		list = append(list, h)
	}
	for _, h := range list {
		if _, err := h.said(); err != nil {
			return f, errors.Join(err, n.process.died())
		}
	}
	f.ConnectedIn = number(time.Since(began).Seconds())
	say("%s: connected in %.0f s; at rest after %d garbage collections", store, float64(f.ConnectedIn), s.collections)
	cpu, began, err := f.busy(n)
	if err != nil {
		return f, err
	}
	at, resident, err := n.rest(ctx, s.collections)
	if err != nil {
		return f, err
	}
	cpuAfter, ended, err := f.busy(n)
	if err != nil {
		return f, err
	}
	f.CPU = number((cpuAfter - cpu) / ended.Sub(began).Seconds())
	for _, h := range list {
		told, err := h.end()
		if err != nil {
			return f, err
		}
		f.Pings += told.Pings
		f.Lost += told.Lost
	}
	each := func(now, before float64) number { return number((now - before) / float64(s.connections)) }
	f.Goroutines, f.Heap, f.Stacks = each(at.goroutines, base.goroutines), each(at.heap, base.heap), each(at.stacks, base.stacks)
	sum, most := 0.0, 0.0
	for _, r := range resident {
		sum, most = sum+r, max(most, r)
	}
	f.Resident, f.ResidentMax = each(sum/float64(len(resident)), base.resident), each(most, base.resident)
	f.BaseMiB = number(base.resident / (1 << 20))
	if f.Lost > 0 {
		return f, fmt.Errorf("%d of %d idle sessions ended", f.Lost, s.connections)
	}
	return f, nil
}

func (f *idleFigures) busy(n *cloudNode) (cpu float64, at time.Time, err error) {
	cpu, err = n.process.cpuSeconds()
	return cpu, time.Now(), err
}

// A holder is a process that holds idle gateways.
type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// gatewaysCommand is this program's argument for that.
const gatewaysCommand = "gateways"

func startHolder(h holding) (*holder, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, gatewaysCommand)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start gateways: %w", err)
	}
	p := &holder{cmd: cmd, in: in, out: json.NewDecoder(out)}
	if err := json.NewEncoder(in).Encode(h); err != nil {
		p.stop()
		return nil, fmt.Errorf("start gateways: %w", err)
	}
	return p, nil
}

// said waits for the next thing that the process says.
func (p *holder) said() (held, error) {
	var h held
	if err := p.out.Decode(&h); err != nil {
		return h, fmt.Errorf("the process of gateways has ended: %w", err)
	}
	return h, nil
}

// end has the process say how it was, and end.
func (p *holder) end() (held, error) {
	if err := p.in.Close(); err != nil {
		return held{}, err
	}
	return p.said()
}

// stop ends the process, whatever it does. It may be called twice.
func (p *holder) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// mostIdle is what an idle gateway may cost.
const mostIdle = 10_000

func printIdle(w io.Writer, list []idleFigures) {
	if len(list) == 0 {
		return
	}
	t := newTable(w, "an idle gateway, by the number of them")
	var columns []string
	for i := range list {
		columns = append(columns, list[i].Store)
	}
	t.header(columns...)
	line := func(name, form string, of func(*idleFigures) number) {
		var values []number
		for i := range list {
			values = append(values, of(&list[i]))
		}
		t.line(name, form, values...)
	}
	line("gateways", "%.0f", func(f *idleFigures) number { return number(f.Connections) })
	line("connected in s", "%.1f", func(f *idleFigures) number { return f.ConnectedIn })
	line("goroutines", "%.2f", func(f *idleFigures) number { return f.Goroutines })
	line("heap, bytes", "%.0f", func(f *idleFigures) number { return f.Heap })
	line("stacks, bytes", "%.0f", func(f *idleFigures) number { return f.Stacks })
	line("heap and stacks", "%.0f", func(f *idleFigures) number { return f.Heap + f.Stacks })
	line("resident, mean, bytes", "%.0f", func(f *idleFigures) number { return f.Resident })
	line("resident, most, bytes", "%.0f", func(f *idleFigures) number { return f.ResidentMax })
	line("node without them, MiB", "%.1f", func(f *idleFigures) number { return f.BaseMiB })
	line("share of a core for heartbeats", "%.3f", func(f *idleFigures) number { return f.CPU })
	t.flush()
	for i := range list {
		verdict := "reached"
		if list[i].ResidentMax > mostIdle {
			verdict = "missed"
		}
		fmt.Fprintf(w, "aim %s with %s: %.0f bytes resident at most for an idle gateway, want at most %d\n", verdict, list[i].Store, float64(list[i].ResidentMax), mostIdle)
	}
}
