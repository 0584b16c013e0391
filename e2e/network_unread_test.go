package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestNetwork_CloudThatStopsReadingHoldsUpNoSensor stops the cloud's process
// while sensors publish: it is there, its connections are up, and it reads
// nothing. Sensors are acknowledged as before, and the gateway's memory is what it
// was, since what is not sent stays on its disk.
func TestNetwork_CloudThatStopsReadingHoldsUpNoSensor(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	c := s.publish(networkCrowd(2000)...)
	s.session()
	c.more(t, times(500, 5000))
	before := s.gateway.residentKiB()
	signal(t, s.cloud, syscall.SIGSTOP)
	c.more(t, times(2000, 20_000))
	st := s.status()
	if st.Buffer.Samples == 0 {
		t.Error("nothing waits in the buffer: the cloud was not stopped")
	}
	t.Logf("MEASURED beside a cloud that reads nothing: %d samples wait in the buffer; memory %d KiB before, %d KiB then", st.Buffer.Samples, before, s.gateway.residentKiB())
	signal(t, s.cloud, syscall.SIGCONT)
	s.settle(c)
}

func signal(t *testing.T, p *program, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// residentKiB returns what the process has in memory, 0 where the system does
// not say.
func (p *program) residentKiB() (kib int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if _, line, ok := strings.Cut(string(text), "VmRSS:"); ok {
		fmt.Sscan(line, &kib)
	}
	return kib
}
