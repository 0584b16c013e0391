// Fuzzall fuzzes every target of the module for a while, one after the other,
// since go test takes one at a time. It asks the packages for their targets, so
// that a new one is never forgotten, prints how many inputs each was given, and
// fails if one failed. What it finds is written to testdata/fuzz of the package,
// to be committed with the fix.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"time"
)

func main() {
	each := flag.Duration("for", 10*time.Second, "how long each target is fuzzed")
	only := flag.String("only", "", "fuzz the targets whose package and name contain this `TEXT`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *each, *only); err != nil {
		fmt.Fprintln(os.Stderr, "fuzzall:", err)
		os.Exit(1)
	}
}

// A target is a fuzz test.
type target struct{ pkg, name string }

func run(ctx context.Context, each time.Duration, only string) error {
	all, err := targets(ctx)
	if err != nil {
		return err
	}
	tried, failed, inputs := 0, 0, 0
	for _, t := range all {
		if !strings.Contains(t.pkg+"."+t.name, only) {
			continue
		}
		n, err := t.fuzz(ctx, each)
		for again := 0; errors.Is(err, errNoVerdict) && again < 2; again++ {
			n, err = t.fuzz(ctx, each)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		tried, inputs = tried+1, inputs+n
		result := "no failure"
		if err != nil {
			failed++
			result = "FAILED: " + err.Error()
		}
		fmt.Printf("MEASURED fuzzing %s %s for %s: %d inputs, %s\n", t.pkg, t.name, each, n, result)
	}
	fmt.Printf("MEASURED fuzzing in all: %d targets, %d inputs, %d failures\n", tried, inputs, failed)
	if failed > 0 {
		return fmt.Errorf("%d of %d targets failed", failed, tried)
	}
	if tried == 0 {
		return fmt.Errorf("there is no target with %q", only)
	}
	return nil
}

// targets asks go test, which prints the names of a package's targets and then
// a line with the package.
func targets(ctx context.Context) ([]target, error) {
	list := exec.CommandContext(ctx, "go", "test", "-list", "^Fuzz", "./...")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list targets: %w\n%s", err, out)
	}
	var all []target
	var names []string
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 1:
			names = append(names, fields[0])
		case len(fields) > 1:
			for _, name := range names {
				all = append(all, target{fields[1], name})
			}
			names = nil
		}
	}
	return all, nil
}

// errNoVerdict says that go test failed a target without an input: under load
// its coordinator takes the end of -fuzztime itself for a failure. It found
// nothing, and is asked again.
var errNoVerdict = errors.New("go test ran into its own deadline")

var execs = regexp.MustCompile(`execs: (\d+)`)

// fuzz returns how many inputs the target was given. What is new is made small
// for a moment only: go test's own minute for each would leave no time for more.
func (t target) fuzz(ctx context.Context, each time.Duration) (inputs int, err error) {
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", each.String(), "-fuzzminimizetime", "100x", t.pkg).CombinedOutput()
	if all := execs.FindAllSubmatch(out, -1); len(all) > 0 {
		inputs, _ = strconv.Atoi(string(all[len(all)-1][1])) // it matched digits: too many for an int are none
	}
	if err != nil && bytes.Contains(out, []byte("context deadline exceeded")) && !bytes.Contains(out, []byte("Failing input")) {
		return inputs, fmt.Errorf("%w: %w\n%s", errNoVerdict, err, out)
	}
	if err != nil {
		return inputs, fmt.Errorf("%w\n%s", err, out)
	}
	if inputs == 0 {
		return 0, fmt.Errorf("it was given none: %s", cmp.Or(strings.TrimSpace(string(out)), "no output"))
	}
	return inputs, nil
}
