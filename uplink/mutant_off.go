//go:build !mutant_stored_when_sent

package uplink

import "touchline/wire"

// sending is called with the blocks of a frame that is about to be written. It
// means nothing for them: only what the cloud calls stored may be forgotten.
// The mutation check of package e2e builds a program that forgets them here,
// and holds that its audit finds the losses.
func (s *session) sending([]wire.FrameBlock) {}
