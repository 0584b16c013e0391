package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"
)

const (
	// agentWait bounds one answer, of a line that fits any socket's buffer; it
	// also bounds how long the look at the store may take. HAProxy asks each 2 s.
	agentWait = time.Second
)

// Load returns how much of what a node can take is taken: the greatest share
// among connections, queue and lag, 0 to 1.
func (s *Stats) Load() float64 {
	share := func(have, max float64) float64 { return have / math.Max(max, 1) }
	return min(1, max(share(float64(s.Connections), float64(s.MaxConnections)),
		share(float64(s.QueueBytes), float64(s.MaxQueueBytes)), share(s.Lag.Seconds(), pausesAfter.Seconds())))
}

// agentAnswer is what this node says to HAProxy's agent-check (configuration
// manual 2.6, "agent-check"): its state, and its free capacity as a weight, in
// steps of a tenth, since each change moves who is where under a consistent hash. It
// is never 0 %, which would be a drain: refusing is for the gate.
//
// It is never down either, which would count at once: a queue that elects a leader, or a store
// that is restarted, is away for all nodes at a time, and nobody would be let
// in. The health check looks at /readyz, and is patient.
func (s *Server) agentAnswer(ctx context.Context) string {
	if s.ingest.roster.stopping() {
		return "up drain\n"
	}
	if s.Ready(ctx) != nil {
		return "up ready 1%\n"
	}
	st := s.Stats()
	return fmt.Sprintf("up ready %d%%\n", max(1, 10*int(math.Round(10*(1-st.Load())))))
}

// answerAgents answers who connects to the agent's address, one after the
// other, until that is closed or ctx is done. It reads nothing: there is one
// answer for all, and agent-send is of no use here.
func (s *Server) answerAgents(ctx context.Context, listener net.Listener) {
	if listener == nil {
		return
	}
	s.log.Info("the load balancer's agent-check is answered", "address", listener.Addr().String())
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || ctx.Err() != nil:
			return
		case err != nil: // no file descriptor is free, say
			pause(ctx, agentWait)
		default:
			s.answerAgent(ctx, conn)
		}
	}
}

func (s *Server) answerAgent(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, agentWait)
	defer cancel()
	if conn.SetDeadline(time.Now().Add(2*agentWait)) == nil {
		_, _ = io.WriteString(conn, s.agentAnswer(ctx))
	}
}
