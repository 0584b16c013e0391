// Testreport reads `go test -json` from standard input and prints what a
// person needs of it: a line for each package, the output of what failed, the
// reason of each skip, and how many tests passed, failed and were skipped. It
// exits 1 if anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

func main() {
	if !report(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// report returns whether everything passed.
func report(in io.Reader, out io.Writer) bool {
	var passed, failed, skipped, packagesFailed int
	output := map[string][]string{} // by package and test, until it has ended
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20) // one event holds one line of output
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(out, lines.Text()) // build errors come as they are
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			if e.Action == "build-output" {
				fmt.Fprint(out, e.Output)
			} else {
				output[key] = append(output[key], e.Output)
			}
			continue
		case "pass", "fail", "skip":
		default:
			continue
		}
		text := strings.Join(output[key], "")
		delete(output, key)
		switch {
		case e.Test == "" && e.Action == "fail":
			packagesFailed++
			fmt.Fprint(out, text)
		case e.Test == "":
			fmt.Fprint(out, lastLine(text))
		case e.Action == "pass":
			passed++
			printNotes(out, text)
		case e.Action == "fail":
			failed++
			fmt.Fprint(out, text)
		case e.Action == "skip":
			skipped++
			fmt.Fprintf(out, "skipped %s %s: %s\n", e.Package, e.Test, reason(text))
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(out, "read test output:", err)
		packagesFailed++
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return failed == 0 && packagesFailed == 0 && passed > 0
}

// printNotes prints what a passing test logged as a finding: lines with
// "MEASURED" in them.
func printNotes(out io.Writer, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		if i := strings.Index(line, "MEASURED "); i >= 0 {
			fmt.Fprintln(out, "   ", line[i+len("MEASURED "):])
		}
	}
}

func lastLine(text string) string {
	lines := strings.SplitAfter(strings.TrimRight(text, "\n"), "\n")
	return strings.TrimRight(lines[len(lines)-1], "\n") + "\n"
}

// reason is what a skipped test logged, without the framing of go test.
func reason(text string) string {
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		return line
	}
	return "no reason given"
}
