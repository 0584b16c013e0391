package cloud_test

import (
	"crypto/sha256"
	"fmt"
	"testing"
)

// onShard returns a gateway whose blocks go into this one of two streams.
func onShard(shard byte) string {
	for i := 0; ; i++ {
		id := fmt.Sprintf("gateway-%d", i)
		if h := sha256.Sum256([]byte(id)); h[7]&1 == shard {
			return id
		}
	}
}

// The blocks of a gateway whose shard is full are tried again and again, in
// batches with those of others, who are answered.
func TestQueue_FullShardLeavesNobodyElseUnanswered(t *testing.T) {
	full, other := onShard(0), onShard(1)
	q := openQueue(t, 2<<20)
	n := run(t, prepareQueued(t, options(), newMemory(full, other), q))
	g, _ := n.join(full)
	for _, b := range noise(100, 20_000) {
		g.send(b)
	}
	h, _ := n.join(other)
	eventually(t, "the shard refuses blocks", func() bool { return n.server.Stats().RecordErrors > 3 })
	for range 5 {
		sent := blocks(t, 10)
		h.send(sent...)
		h.acceptedOnly(sent...)
	}
	if n.server.Ready(t.Context()) == nil {
		t.Error("a node whose queue refuses blocks says that it is ready")
	}
}
