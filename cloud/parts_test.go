package cloud_test

import (
	"slices"
	"testing"

	"github.com/gorilla/websocket"

	"touchline/cloud"
	"touchline/wire"
)

// inParts sends pieces of data as parts of one frame.
func (g *gateway) inParts(data []byte, size int, between func()) {
	g.t.Helper()
	for at := 0; at < len(data); at += size {
		if at > 0 {
			between()
		}
		part := wire.AppendPart(nil, wire.Part{Offset: at, Total: len(data), Data: data[at:min(at+size, len(data))]})
		g.binary(part)
	}
}

func (g *gateway) binary(data []byte) {
	g.t.Helper()
	if err := g.conn.WriteMessage(websocket.BinaryMessage, data); err != nil {
		g.t.Fatal(err)
	}
}

func TestParts_OtherFramesGoBetweenThem(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		g, welcome := n.join("arena")
		if !slices.Contains(welcome.Capabilities, wire.CapabilityParts) {
			t.Errorf("welcome has the capabilities %v", welcome.Capabilities)
		}
		large, small := blocks(t, 2), blocks(t, 100)
		frame, err := wire.AppendFrame(nil, []wire.FrameBlock{{Block: large[0]}, {Block: large[1], Lane: wire.Backlog}})
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		g.inParts(frame, len(frame)/20, func() {
			g.send(small[sent])
			g.stored(small[sent])
			sent++
		})
		g.stored(large...)
		if st := n.server.Stats(); st.BlocksStored != uint64(2+sent) || st.Repeats != 0 {
			t.Errorf("stats are %+v", st)
		}
	}, "arena")
}

func TestParts_ASessionThatBreaksThemEnds(t *testing.T) {
	frame, err := wire.AppendFrame(nil, []wire.FrameBlock{{Block: blocks(t, 1)[0]}})
	if err != nil {
		t.Fatal(err)
	}
	part := func(offset, total int, data []byte) []byte {
		return wire.AppendPart(nil, wire.Part{Offset: offset, Total: total, Data: data})
	}
	begun := part(0, len(frame), frame[:10])
	for name, messages := range map[string][][]byte{
		"a gap":                    {begun, part(20, len(frame), frame[20:])},
		"the same part again":      {begun, begun},
		"a frame of another size":  {begun, part(10, len(frame)+1, frame[10:])},
		"more than a frame may be": {part(0, wire.MinFrameBytes+1, frame)},
		"no part":                  {begun[:5]},
		"parts of no frame":        {part(0, 4, []byte{9, 9, 9, 9})},
		"a part in a part":         {part(0, len(begun), begun)},
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t, options(), newMemory("arena"))
			g, _ := n.join("arena")
			for _, m := range messages {
				g.binary(m)
			}
			g.closed(wire.CloseProtocol)
			again, _ := n.join("arena") // what was begun ended with its session
			again.inParts(frame, 30, func() {})
			again.stored(blocksOf(t, frame)...)
		})
	}
}

func blocksOf(t *testing.T, frame []byte) (list []wire.Block) {
	t.Helper()
	parsed, err := wire.ParseFrame(nil, frame)
	if err != nil {
		t.Fatal(err)
	}
	for i := range parsed {
		list = append(list, parsed[i].Block)
	}
	return list
}
