package sensors

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"testing"
)

// BenchmarkMQTT measures QoS 1 messages with a JSON object of about 100 bytes,
// from the socket to the acknowledgement, with a store that commits at once.
// Its load takes about as much CPU as the broker.
func BenchmarkMQTT(b *testing.B) {
	for _, bm := range []struct{ conns, window int }{{1, 1}, {1, 256}, {300, 1}, {300, 32}} {
		b.Run(fmt.Sprintf("conns=%d/window=%d", bm.conns, bm.window), func(b *testing.B) {
			store := newStore(b)
			store.discard = true
			m := startMQTT(b, newTestIntake(b, store), nil, slog.New(slog.DiscardHandler))
			clients := make([]*rawClient, bm.conns)
			for i := range clients {
				clients[i] = dialMQTT(b, m.Addr(), 4, fmt.Sprintf("load-%d", i))
			}
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for i, c := range clients {
				n := b.N / bm.conns
				if i < b.N%bm.conns {
					n++
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					if err := loadMQTT(c.Conn, fmt.Sprintf("sensors/player-%d", i), n, bm.window); err != nil {
						b.Error(err)
					}
				}()
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}

// loadMQTT publishes n messages with at most window unacknowledged. It refills
// the window with one write for each read.
func loadMQTT(conn net.Conn, topic string, n, window int) error {
	msg := publishPacket(4, 1, 0, topic,
		`{"t":1700000000123456789,"heart_rate":142,"x":12.345,"y":-3.21,"speed":4.56,"battery":87,"seq":1234}`)
	idAt := 2 + 2 + len(topic)
	out := make([]byte, 0, window*len(msg))
	in := make([]byte, 4*window)
	sent, acked, held := 0, 0, 0
	for acked < n {
		out = out[:0]
		for sent < n && sent-acked < window {
			sent++
			binary.BigEndian.PutUint16(msg[idAt:], uint16(sent%65535+1))
			out = append(out, msg...)
		}
		if len(out) > 0 {
			if _, err := conn.Write(out); err != nil {
				return err
			}
		}
		got, err := conn.Read(in[held:])
		if err != nil {
			return err
		}
		held += got
		for len(in[:held]) >= 4 {
			if in[0] != 0x40 || in[1] != 2 {
				return fmt.Errorf("got % x, want a PUBACK", in[:held])
			}
			acked++
			want := uint16(acked%65535 + 1)
			if id := binary.BigEndian.Uint16(in[2:]); id != want {
				return fmt.Errorf("got PUBACK %d, want %d: %w", id, want, io.ErrUnexpectedEOF)
			}
			held = copy(in, in[4:held])
		}
	}
	return nil
}

// BenchmarkMQTTIdle measures what a connection costs in memory after its first
// message, stacks included. Both sides are in the process, so the client's
// socket and nothing else of it is in the number.
func BenchmarkMQTTIdle(b *testing.B) {
	store := newStore(b)
	store.discard = true
	m := startMQTT(b, newTestIntake(b, store), nil, slog.New(slog.DiscardHandler))
	const conns = 500
	var before, after runtime.MemStats
	for range b.N {
		clients := make([]net.Conn, 0, conns)
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range conns {
			conn, err := net.Dial("tcp", m.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			clients = append(clients, conn)
			if _, err := conn.Write(connectPacket(4, fmt.Sprintf("idle-%d", i), true)); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
				b.Fatal(err)
			}
			if err := loadMQTT(conn, fmt.Sprintf("sensors/idle-%d", i), 10, 10); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		used := func(s runtime.MemStats) uint64 { return s.HeapInuse + s.StackInuse }
		b.ReportMetric(float64(used(after)-used(before))/conns, "B/conn")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/conns, "stack-B/conn")
		for _, c := range clients {
			c.Close()
		}
		eventually(b, "all connections ended", func() bool { return m.intake.Stats().Transports[TransportMQTT].Connections == 0 })
	}
}
