package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestMessages_RoundTrip(t *testing.T) {
	body := AppendMessage(nil, OpText, []byte(`{"type":"ack"}`))
	body = AppendMessage(body, OpBinary, nil)
	body = AppendClose(body, 1012, "restart")
	r := bytes.NewReader(body)
	for i, want := range []struct {
		op   byte
		data string
	}{{OpText, `{"type":"ack"}`}, {OpBinary, ""}, {OpClose, "\x03\xf4restart"}} {
		op, data, err := ReadMessage(r, 100)
		if err != nil || op != want.op || string(data) != want.data {
			t.Fatalf("message %d: %d %q %v, want %d %q", i, op, data, err, want.op, want.data)
		}
		if op == OpClose {
			if code, reason, err := ParseClose(data); code != 1012 || reason != "restart" || err != nil {
				t.Errorf("close %d %q %v", code, reason, err)
			}
		}
	}
	if _, _, err := ReadMessage(r, 100); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestMessages_WhatIsNoneIsRefused(t *testing.T) {
	whole := AppendMessage(nil, OpText, []byte("abc"))
	for n := 1; n < len(whole); n++ {
		if _, _, err := ReadMessage(bytes.NewReader(whole[:n]), 100); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d of %d bytes: %v, want an unexpected end", n, len(whole), err)
		}
	}
	if _, _, err := ReadMessage(bytes.NewReader(whole), 2); err == nil {
		t.Error("a message larger than allowed is read")
	}
	if _, _, err := ReadMessage(bytes.NewReader([]byte{9, 0, 0, 0, 0}), 100); err == nil {
		t.Error("an unknown opcode is read")
	}
	if _, _, err := ParseClose([]byte{1}); err == nil {
		t.Error("a close of one byte is read")
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add(AppendClose(AppendMessage(nil, OpText, []byte("{}")), 4409, "x"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := bytes.NewReader(body)
		var again []byte
		for {
			op, data, err := ReadMessage(r, 1<<16)
			if err != nil {
				break
			}
			again = AppendMessage(again, op, data)
		}
		if !bytes.HasPrefix(body, again) {
			t.Errorf("%x was read as %x", body, again)
		}
	})
}
