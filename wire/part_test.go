package wire_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"touchline/wire"
)

func TestPart_AFrameInAnyPartsIsTheFrame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a wire.Assembly
		for range rapid.IntRange(1, 3).Draw(t, "frames") {
			frame := rapid.SliceOfN(rapid.Byte(), 1, 2000).Draw(t, "frame")
			for at := 0; at < len(frame); {
				n := min(rapid.IntRange(1, 700).Draw(t, "part"), len(frame)-at)
				part := wire.AppendPart(nil, wire.Part{Offset: at, Total: len(frame), Data: frame[at : at+n]})
				if !wire.IsPart(part) || len(part) != wire.PartHeaderBytes+n {
					t.Fatalf("a part of %d bytes is %x", n, part)
				}
				at += n
				got, err := a.Add(part, 2000)
				if err != nil || (at == len(frame)) != (got != nil) || got != nil && !bytes.Equal(got, frame) {
					t.Fatalf("at %d of %d: %x, %v", at, len(frame), got, err)
				}
			}
		}
	})
}

func TestPart_WhatIsNotTheNextPartIsAnError(t *testing.T) {
	part := func(offset, total int, data string) []byte {
		return wire.AppendPart(nil, wire.Part{Offset: offset, Total: total, Data: []byte(data)})
	}
	changed := func(at int, to byte) []byte {
		p := part(2, 6, "cd")
		p[at] = to
		return p
	}
	for name, second := range map[string][]byte{
		"a gap":                part(3, 6, "d"),
		"a repeat":             part(0, 6, "ab"),
		"another frame's":      part(2, 7, "cd"),
		"empty":                part(2, 6, "c")[:wire.PartHeaderBytes],
		"cut":                  part(2, 6, "c")[:5],
		"flags":                changed(1, 1),
		"reserved bytes":       changed(3, 1),
		"beyond the frame":     changed(11, 3),
		"a wrapped offset":     changed(4, 0xff),
		"another version":      changed(0, 3),
		"more than is allowed": part(2, 11, "cd"),
	} {
		var a wire.Assembly
		if _, err := a.Add(part(0, 6, "ab"), 10); err != nil {
			t.Fatal(err)
		}
		if frame, err := a.Add(second, 10); err == nil {
			t.Errorf("%s is taken: %x", name, frame)
		}
	}
}
