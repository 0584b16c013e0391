package cloud_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// FuzzUplink says anything behind a hello: the session ends, and what it stored
// is what was whole; another gateway's session is not disturbed.
func FuzzUplink(f *testing.F) {
	epoch := touchline.Epoch{1, 2, 3}
	frame := func(blocks ...wire.Block) []byte {
		list := make([]wire.FrameBlock, len(blocks))
		for i := range blocks {
			list[i].Block = blocks[i]
		}
		data, err := wire.AppendFrame(nil, list)
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	good := block(f, epoch, 1, readings(10, 0))
	bad := good
	bad.CRC++
	hello := []byte(`{"type":"hello","gateway":"arena","software":"x","clock":"set"}`)
	for _, binary := range [][]byte{frame(good), frame(good, bad), frame(undecodable(epoch, 5, "nothing")), {}, {1, 0, 0, 1}} {
		f.Add(hello, binary, []byte(`{"type":"lost","id":1,"epoch":"`+epoch.String()+`","ranges":[[1,5]],"cause":"max_bytes","min_time":1,"max_time":2}`))
	}
	f.Add([]byte(`{"type":"hello","gateway":"other"}`), frame(good), []byte(`{"type":"clock"}`))
	f.Add([]byte("{"), []byte{}, []byte("\xff"))
	store := newMemory("arena", "other")
	n := start(f, options(), store)
	f.Fuzz(func(t *testing.T, hello, binary, text []byte) {
		store.mu.Lock()
		clear(store.blocks)
		store.aside, store.lost, store.records, store.batches = nil, nil, nil, nil
		store.mu.Unlock()
		dialer := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}, HandshakeTimeout: patience}
		conn, _, err := dialer.Dial("ws://"+n.addr+wire.UplinkPath, header("arena"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = conn.NetConn().(*net.TCPConn).SetLinger(0) // thousands a second would use up the ports
			conn.Close()
		}()
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		for _, m := range []struct {
			kind int
			data []byte
		}{{websocket.TextMessage, hello}, {websocket.BinaryMessage, binary}, {websocket.TextMessage, text}} {
			if conn.WriteMessage(m.kind, m.data) != nil {
				break // it has heard enough
			}
		}
		end := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
		_ = conn.WriteControl(websocket.CloseMessage, end, time.Now().Add(patience))
		for err == nil {
			_, _, err = conn.ReadMessage()
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("the session is open %s after its end", patience)
		}
	})
}
