package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"touchline"
)

const (
	blockVersion   = 1
	flagCompressed = 0x01 // the body is one zstd frame; else it is stored as it is
)

// ErrTooLarge is wrapped by Encode where one sample alone does not fit a
// block. It can't happen to names of at most touchline.MaxNameBytes with a
// value of at most 128 KiB.
var ErrTooLarge = errors.New("sample does not fit a block")

// Encoded is what Encode made of a prefix of its samples.
type Encoded struct {
	Data             []byte // the dst of Encode with the block appended
	Count            int    // how many samples the block holds
	MinTime, MaxTime int64  // of those samples; 0 for an empty block
}

// An Encoder turns samples into the data of blocks (FORMAT.md). What it
// writes depends on the samples alone, not on what it wrote before. It keeps
// its buffers, some 40 bytes for each sample of its largest block and about
// 1 MB for zstd, but no string of a sample. It is not safe for concurrent use.
type Encoder struct {
	samples []touchline.Sample // of the running Encode
	group   grouping
	out     numberWriter
	text    []byte
	stream  []byte // the one that is being made
	stamped []byte // a bit for each series
	times   timeColumns
	floats  []float64
	ints    []int64
	subset  []int32
	body    []byte
	zstd    *zstd.Encoder
}

// NewEncoder returns an Encoder. Its buffers come with the first block.
func NewEncoder() *Encoder {
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest), // integers are coded before: a higher level gains 1 % and costs double
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), // the block has one of its own
		zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(MaxRawBytes))
	if err != nil {
		panic("BUG: zstd options: " + err.Error())
	}
	e := &Encoder{zstd: z}
	e.out.columnWriter = new(columnWriter)
	return e
}

// Encode appends one block to dst that holds a prefix of samples: all of them
// where they fit MaxBlockSamples, MaxRawBytes and MaxBlockBytes, else as many
// as it finds to fit, at least one. No samples make an empty block, which
// Decode takes, but which has no numbers and so never travels. The samples are
// read only. Decode returns them by series in order of first appearance, each
// series in the order it has here; what the gateway stamped is a series apart.
// The block does not say by which clock: EncodeWith does.
func (e *Encoder) Encode(dst []byte, samples []touchline.Sample) (Encoded, error) {
	return e.EncodeWith(dst, samples, Attributes{})
}

// EncodeWith is Encode of a block that has these attributes.
func (e *Encoder) EncodeWith(dst []byte, samples []touchline.Sample, a Attributes) (Encoded, error) {
	e.samples = samples
	defer func() { // keep no string of theirs
		e.samples = nil
		e.group.reset()
	}()
	limit := min(len(samples), MaxBlockSamples)
	for {
		n := e.group.add(samples[:limit], MaxRawBytes)
		e.encodeBody(a)
		data := e.appendBlock(dst)
		size := len(data) - len(dst)
		if size <= MaxBlockBytes && len(e.body) <= MaxRawBytes {
			return Encoded{Data: data, Count: n, MinTime: e.group.minTime, MaxTime: e.group.maxTime}, nil
		}
		if n <= 1 {
			return Encoded{}, fmt.Errorf("encode block: %w: %.40q of sensor %.40q takes %d bytes: at most %d are allowed",
				ErrTooLarge, samples[0].Metric, samples[0].Sensor, size, MaxBlockBytes)
		}
		share := int64(n) * MaxBlockBytes / int64(size) * 15 / 16 // up to 12 Gi on the way: no int of 32 bits
		limit = max(1, min(n-1, int(share)))
	}
}

// appendBlock appends head and body, compressed where that is smaller.
func (e *Encoder) appendBlock(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, blockVersion, flagCompressed)
	dst = e.zstd.EncodeAll(e.body, dst)
	if len(dst)-start-2 >= len(e.body) {
		dst = append(dst[:start], blockVersion, 0)
		dst = append(dst, e.body...)
	}
	return dst
}

// encodeBody fills e.body from e.group.
func (e *Encoder) encodeBody(a Attributes) {
	g := &e.group
	e.putAttributes(a)
	e.body = binary.AppendUvarint(e.body, uint64(len(g.of)))
	if len(g.of) == 0 {
		return
	}
	g.arrange(e.samples)
	e.out.reset()
	e.out.modes, e.text = e.out.modes[:0], e.text[:0]
	e.putNames()
	e.putTimes()
	e.putSeries()
	for i := range g.series {
		e.putValues(&g.series[i])
	}
	e.out.bits.flush()
	e.putStream(e.out.modes)
	e.putStream(e.out.orders)
	e.putStream(e.out.ks)
	e.putStream(e.out.numbers)
	e.putStream(e.text)
	e.putStream(e.out.bits.buf)
}

func (e *Encoder) putStream(data []byte) {
	e.body = binary.AppendUvarint(e.body, uint64(len(data)))
	e.body = append(e.body, data...)
}

// putNames writes the tables of sensors, metrics and units.
func (e *Encoder) putNames() {
	e.stream = e.stream[:0]
	for _, table := range [...]*names{&e.group.sensors, &e.group.metrics, &e.group.units} {
		e.stream = binary.AppendUvarint(e.stream, uint64(len(table.list)))
		for _, name := range table.list {
			e.stream = binary.AppendUvarint(e.stream, uint64(len(name)))
		}
		for _, name := range table.list {
			e.stream = append(e.stream, name...)
		}
	}
	e.putStream(e.stream)
}

// putTimes collects the time columns and writes them.
func (e *Encoder) putTimes() {
	t := &e.times
	t.collect(&e.group)
	t.scale()
	var before int64
	for _, c := range t.columns {
		ticks := t.ticks[c.start : c.start+c.count]
		e.out.columnWriter.write(e.out.planner.plan(ticks, false), before, false)
		before = ticks[0]
	}
}

// putSeries writes which series there are: column by column, so that the
// regularity of many sensors of one kind shows.
func (e *Encoder) putSeries() {
	t := &e.times
	out := append(e.stream[:0], t.exponent)
	out = binary.AppendUvarint(out, uint64(len(t.columns)))
	for _, c := range t.columns {
		out = binary.AppendUvarint(out, uint64(c.count))
	}
	list := e.group.series
	out = binary.AppendUvarint(out, uint64(len(list)))
	before := int32(0)
	for i := range list {
		out = binary.AppendVarint(out, int64(list[i].sensor-before))
		before = list[i].sensor
	}
	for i := range list {
		out = binary.AppendUvarint(out, uint64(list[i].metric))
	}
	for i := range list {
		out = binary.AppendUvarint(out, uint64(list[i].unit))
	}
	before = 0
	for _, ref := range t.refs {
		out = binary.AppendVarint(out, int64(ref-before))
		before = ref
	}
	e.stream = out
	e.putStream(out)
}

// putValues writes the values of a series.
func (e *Encoder) putValues(s *series) {
	at := e.group.perm[s.start : s.start+s.count]
	if !s.mixed {
		e.putKind(s.kind, at, e.group.floats[s.start:s.start+s.count])
		return
	}
	e.out.modes = append(e.out.modes, modeMixed)
	var present [touchline.Bytes + 1]bool
	e.putInts(at, func(v touchline.Value) int64 {
		present[v.Kind()] = true
		return int64(v.Kind())
	})
	for kind, is := range present {
		if !is {
			continue
		}
		e.subset, e.floats = e.subset[:0], e.floats[:0]
		for _, i := range at {
			if v := e.samples[i].Value; v.Kind() == touchline.Kind(kind) {
				e.subset = append(e.subset, i)
				e.floats = append(e.floats, v.Float())
			}
		}
		e.putKind(touchline.Kind(kind), e.subset, e.floats)
	}
}

// putKind writes the values of the samples at the given indexes, all of one
// kind; floats are those of numbers.
func (e *Encoder) putKind(kind touchline.Kind, at []int32, floats []float64) {
	switch kind {
	case touchline.Number:
		e.out.write(floats)
	case touchline.Bool:
		e.out.modes = append(e.out.modes, modeBool)
		e.putInts(at, func(v touchline.Value) int64 {
			if v.Bool() {
				return 1
			}
			return 0
		})
	case touchline.Text, touchline.Bytes:
		mode := byte(modeText)
		if kind == touchline.Bytes {
			mode = modeBytes
		}
		e.out.modes = append(e.out.modes, mode)
		e.putInts(at, func(v touchline.Value) int64 { return int64(len(v.Text())) })
		for _, i := range at {
			e.text = append(e.text, e.samples[i].Value.Text()...)
		}
	default:
		panic("BUG: value of unknown " + kind.String())
	}
}

func (e *Encoder) putInts(at []int32, of func(touchline.Value) int64) {
	e.ints = e.ints[:0]
	for _, i := range at {
		e.ints = append(e.ints, of(e.samples[i].Value))
	}
	e.out.columnWriter.write(e.out.planner.plan(e.ints, false), 0, false)
}
