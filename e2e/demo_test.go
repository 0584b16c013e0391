package e2e

import (
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var storedByCloud = regexp.MustCompile(`uplink (\w+)  \|  cloud stored (\d+)`)

// TestDemo_CutLineLosesNothing is what a newcomer does: start the demo, see
// samples arrive, cut the line, mend it, and end it.
func TestDemo_CutLineLosesNothing(t *testing.T) {
	demo := exec.Command(filepath.Join(bin, "demo"))
	out := &logBuffer{}
	demo.Stdout, demo.Stderr = out, out
	keys, err := demo.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- demo.Wait() }()
	defer func() { _ = demo.Process.Kill() }()

	// last returns the newest report.
	last := func() (state string, stored int) {
		all := storedByCloud.FindAllStringSubmatch(out.String(), -1)
		if len(all) == 0 {
			return "", 0
		}
		state = all[len(all)-1][1]
		stored, _ = strconv.Atoi(all[len(all)-1][2])
		return state, stored
	}
	waitFor(t, "samples stored in the cloud", func() bool { _, n := last(); return n > 0 })
	press(t, keys, "u\n")
	waitFor(t, "the uplink to notice the cut", func() bool { state, _ := last(); return state != "connected" })
	_, before := last()
	press(t, keys, "u\n")
	waitFor(t, "the backlog to flow", func() bool { state, n := last(); return state == "connected" && n > before })
	if err := demo.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the demo to end", func() bool {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the demo ended with %v", err)
			}
			return true
		default:
			return false
		}
	})
	if !strings.Contains(out.String(), "nothing lost, nothing twice") {
		t.Errorf("the demo printed\n%s", out)
	}
}

func press(t *testing.T, keys io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(keys, s); err != nil {
		t.Fatal(err)
	}
}
