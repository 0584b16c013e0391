//go:build mutant_stored_when_sent

package uplink

import (
	"touchline"
	"touchline/wire"
)

// sending is broken on purpose: what is sent is forgotten, stored or not.
func (s *session) sending(blocks []wire.FrameBlock) {
	for i := range blocks {
		b := &blocks[i]
		_ = s.source.Ack([]wire.EpochRanges{{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}}}, nil)
	}
}
