package jetstream

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"touchline/cloud"
	"touchline/cloud/tracing"
	"touchline/wire"
)

// A message is one block: a frame of touchline.v1 with it alone, and headers
// with what else is known of it. The last one is the CRC-32C of the others and of the
// block's own CRC, so that a damaged message is known whichever byte it is.
const (
	headerGateway  = "Touchline-Gateway"
	headerSession  = "Touchline-Session"
	headerReceived = "Touchline-Received" // ns since the Unix epoch
	headerCRC      = "Touchline-Crc"
	headerTrace    = "traceparent" // of a block that is followed; not in the CRC, since nothing rests on it
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(h nats.Header, block uint32) string {
	text := fmt.Sprintf("%s %s %s %08x", h.Get(headerGateway), h.Get(headerSession), h.Get(headerReceived), block)
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(text), castagnoli))
}

// shardOf spreads gateways over shards, and keeps the blocks of one together.
func shardOf(gateway string, shards int) int {
	h := sha256.Sum256([]byte(gateway)) // even for ids that differ in their last digit only
	return int(binary.BigEndian.Uint64(h[:8]) % uint64(shards))
}

// messageOf returns a delivery as a message.
func messageOf(d *cloud.Delivery, subject string) (*nats.Msg, error) {
	data, err := wire.AppendFrame(nil, []wire.FrameBlock{{Block: d.Block, Lane: d.Lane}})
	if err != nil {
		return nil, fmt.Errorf("make frame: %w", err)
	}
	b := &d.Block
	m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{
		nats.MsgIdHdr:  {fmt.Sprintf("%s/%s/%d/%d/%08x", d.Gateway, b.Epoch, b.First, b.Count, b.CRC)},
		headerGateway:  {d.Gateway},
		headerSession:  {strconv.FormatUint(d.Session, 10)},
		headerReceived: {strconv.FormatInt(d.Received.UnixNano(), 10)},
	}}
	m.Header[headerCRC] = []string{sum(m.Header, b.CRC)}
	if parent := d.Trace.Parent(); parent != "" {
		m.Header[headerTrace] = []string{parent}
	}
	return m, nil
}

// deliveryOf reads a message. An error means that it is damaged.
func deliveryOf(h nats.Header, data []byte) (d cloud.Delivery, err error) {
	blocks, err := wire.ParseFrame(nil, data)
	if err != nil {
		return d, fmt.Errorf("read frame: %w", err)
	}
	if len(blocks) != 1 {
		return d, fmt.Errorf("it has %d blocks: want 1", len(blocks))
	}
	d.Block, d.Lane = blocks[0].Block, blocks[0].Lane
	if err := d.Block.Check(); err != nil {
		return d, err
	}
	if got, want := h.Get(headerCRC), sum(h, d.Block.CRC); got != want {
		return d, fmt.Errorf("its headers have the CRC %.8q: want %s", got, want)
	}
	d.Gateway = h.Get(headerGateway)
	if d.Session, err = strconv.ParseUint(h.Get(headerSession), 10, 64); err != nil {
		return d, fmt.Errorf("read session: %w", err)
	}
	received, err := strconv.ParseInt(h.Get(headerReceived), 10, 64)
	if err != nil {
		return d, fmt.Errorf("read time: %w", err)
	}
	d.Received = time.Unix(0, received)
	d.Trace = tracing.Remote(h.Get(headerTrace))
	return d, nil
}
