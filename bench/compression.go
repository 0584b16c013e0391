package main

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"touchline"
	"touchline/wire"
)

// compression is what a sample of one recording takes on the wire, in bytes, in
// messages of 1,000 samples each.
type compression struct {
	Recording string `json:"recording"`
	Samples   int    `json:"samples"`
	JSON      number `json:"json_lines"`
	Gzip      number `json:"json_gzip"`
	// Deflate is permessage-deflate (RFC 7692) of JSON lines with the context of
	// earlier messages, which costs both sides some 100 KB a connection; Alone is
	// without, as most servers do it.
	Deflate      number `json:"json_permessage_deflate"`
	DeflateAlone number `json:"json_permessage_deflate_no_context"`
	// Block is a frame of touchline.v1 with one block, headers included.
	Block number `json:"block"`
	// BlockDeflate is that with permessage-deflate, which touchline.v1 leaves off.
	BlockDeflate number `json:"block_permessage_deflate"`
}

// measureCompression encodes a recording in each of the ways.
func measureCompression(dir, name string) (compression, error) {
	out := compression{Recording: name}
	samples, err := readRecording(dir, name)
	if err != nil {
		return out, err
	}
	var sum struct{ json, gzip, deflate, alone, block, blockDeflate int }
	jsonDeflate, blockDeflate := newDeflater(), newDeflater()
	encoder, epoch := wire.NewEncoder(), touchline.NewEpoch()
	first := uint64(1)
	for chunk := range slices.Chunk(samples, samplesPerBlock) {
		lines, err := jsonLines(chunk)
		if err != nil {
			return out, err
		}
		encoded, err := encoder.Encode(nil, chunk)
		if err == nil && encoded.Count != len(chunk) {
			err = fmt.Errorf("%d of %d samples fit a block", encoded.Count, len(chunk))
		}
		if err != nil {
			return out, fmt.Errorf("encode %s: %w", name, err)
		}
		b := wire.Block{Epoch: epoch, First: first, Count: uint32(len(chunk)), Data: encoded.Data}
		b.CRC = b.Sum()
		frame, err := wire.AppendFrame(nil, []wire.FrameBlock{{Block: b}})
		if err != nil {
			return out, err
		}
		first += uint64(len(chunk))
		sum.json += len(lines)
		sum.gzip += gzipped(lines)
		sum.deflate += jsonDeflate.message(lines)
		sum.alone += newDeflater().message(lines)
		sum.block += len(frame)
		sum.blockDeflate += blockDeflate.message(frame)
	}
	out.Samples = len(samples)
	per := func(n int) number { return ratio(float64(n), float64(len(samples))) }
	out.JSON, out.Gzip, out.Deflate, out.DeflateAlone = per(sum.json), per(sum.gzip), per(sum.deflate), per(sum.alone)
	out.Block, out.BlockDeflate = per(sum.block), per(sum.blockDeflate)
	return out, nil
}

// jsonLines writes one object a sample.
func jsonLines(samples []touchline.Sample) ([]byte, error) {
	var out bytes.Buffer
	lines := json.NewEncoder(&out)
	for i := range samples {
		s := &samples[i]
		value := s.Value.Float() // recordings have nothing else
		err := lines.Encode(struct {
			Time   int64   `json:"time"`
			Sensor string  `json:"sensor"`
			Metric string  `json:"metric"`
			Unit   string  `json:"unit,omitempty"`
			Value  float64 `json:"value"`
		}{s.Time, s.Sensor, s.Metric, s.Unit, value})
		if err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

func gzipped(data []byte) int {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(data) // into memory: neither fails
	z.Close()
	return out.Len()
}

// A deflater is one side of permessage-deflate at the default level.
type deflater struct {
	out bytes.Buffer
	z   *flate.Writer
}

func newDeflater() *deflater {
	d := new(deflater)
	d.z, _ = flate.NewWriter(&d.out, flate.DefaultCompression) // fails for unknown levels only
	return d
}

// message returns the size of a message behind those before it. Its last four
// bytes are not sent (RFC 7692, section 7.2.1).
func (d *deflater) message(data []byte) int {
	d.out.Reset()
	d.z.Write(data)
	d.z.Flush()
	return d.out.Len() - 4
}

func printCompression(w io.Writer, list []compression) {
	if len(list) == 0 {
		return
	}
	t := newTable(w, "bytes a sample on the wire, 1,000 a message")
	columns := []string{}
	for _, c := range list {
		columns = append(columns, c.Recording)
	}
	t.header(columns...)
	line := func(name string, of func(*compression) number) {
		var values []number
		for i := range list {
			values = append(values, of(&list[i]))
		}
		t.line(name, "%.2f", values...)
	}
	line("JSON lines", func(c *compression) number { return c.JSON })
	line("with gzip", func(c *compression) number { return c.Gzip })
	line("with permessage-deflate", func(c *compression) number { return c.Deflate })
	line("  without its context", func(c *compression) number { return c.DeflateAlone })
	line("block in a frame", func(c *compression) number { return c.Block })
	line("  with permessage-deflate", func(c *compression) number { return c.BlockDeflate })
	line("block by JSON", func(c *compression) number { return c.Block / c.JSON })
	line("block by permessage-deflate", func(c *compression) number { return c.Block / c.Deflate })
	t.flush()
}
