package wire

import (
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"

	"touchline"
)

// A Decoder turns the data of blocks back into samples. It keeps its buffers,
// at most about 3 * MaxRawBytes. It is not safe for concurrent use.
type Decoder struct {
	zstd   *zstd.Decoder
	body   []byte
	in     columnReader
	modes  cursor
	text   string      // of the block; values share it
	tables [3][]string // sensors, metrics, units
	series []decodedSeries
	times  []timeColumn
	unit   int64 // of ticks, in ns
	ticks  []int64
	ints   []int64
	floats []float64
	values []touchline.Value
	kinds  []touchline.Kind
	mixed  []touchline.Value

	attributes Attributes // of the block at hand or the last one
	stamped    []byte     // a bit for each series, in body; nil is none
}

type decodedSeries struct{ sensor, metric, unit, times uint32 }

// NewDecoder returns a Decoder. Its buffers come with the first block.
func NewDecoder() *Decoder {
	z, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxRawBytes),
		zstd.WithDecoderMaxWindow(MaxRawBytes))
	if err != nil {
		panic("BUG: zstd options: " + err.Error())
	}
	return &Decoder{zstd: z}
}

// Decode appends the samples of one block to dst, in the order of their
// numbers. They share no memory with data; samples of a block share the
// strings of their names, and their texts and bytes are parts of one string.
// Data that is no block is an error, and dst is then returned unchanged. No
// block makes Decode allocate more than MaxRawBytes and MaxBlockSamples allow,
// and none that is larger than MaxBlockBytes is looked at.
func (d *Decoder) Decode(dst []touchline.Sample, data []byte) ([]touchline.Sample, error) {
	d.attributes = Attributes{}
	samples, err := d.decode(dst, data)
	if err != nil {
		d.attributes = Attributes{}
		return dst, fmt.Errorf("decode block: %w", err)
	}
	return samples, nil
}

// Attributes returns what the block that Decode took last says of its samples;
// nothing where that was no block. It is the caller's.
func (d *Decoder) Attributes() Attributes { return d.attributes }

func (d *Decoder) decode(dst []touchline.Sample, data []byte) ([]touchline.Sample, error) {
	if len(data) > MaxBlockBytes {
		return nil, fmt.Errorf("%d bytes: at most %d are allowed", len(data), MaxBlockBytes)
	}
	if err := d.open(data); err != nil {
		return nil, err
	}
	body := cursor{data: d.body}
	if err := d.readAttributes(&body); err != nil {
		return nil, err
	}
	count := body.count(MaxBlockSamples)
	if body.bad {
		return nil, errors.New("attributes or count are cut off or too large")
	}
	if count == 0 {
		if len(body.data) > 0 {
			return nil, fmt.Errorf("%d bytes after an empty block", len(body.data))
		}
		if d.stamped != nil {
			return nil, errors.New("an empty block has stamped series")
		}
		return dst, nil
	}
	streams, err := split(body)
	if err != nil {
		return nil, err
	}
	if err := d.readDirectory(streams, count); err != nil {
		return nil, err
	}
	if err := d.checkStamped(); err != nil {
		return nil, err
	}
	d.readHeads(streams)
	if err := d.readTimes(); err != nil {
		return nil, err
	}
	start := len(dst)
	dst = slices.Grow(dst, count)[:start+count]
	if err := d.readSamples(dst[start:]); err != nil {
		clear(dst[start:])
		return nil, err
	}
	return dst, d.checkEnd()
}

// open fills d.body, with bitSlack bytes of capacity behind it.
func (d *Decoder) open(data []byte) error {
	if len(data) < 2 {
		return errors.New("head is cut off")
	}
	if data[0] != blockVersion {
		return fmt.Errorf("version %d: want %d", data[0], blockVersion)
	}
	body := d.body[:0]
	switch data[1] {
	case 0:
		body = append(body, data[2:]...)
	case flagCompressed:
		var err error
		if body, err = d.zstd.DecodeAll(data[2:], body); err != nil {
			return fmt.Errorf("decompress: %w", err)
		}
	default:
		return fmt.Errorf("unknown flags 0x%02x", data[1])
	}
	if len(body) > MaxRawBytes {
		return fmt.Errorf("body of %d bytes: at most %d are allowed", len(body), MaxRawBytes)
	}
	d.body = slices.Grow(body, bitSlack)
	return nil
}

// The streams of a body, in their order.
const (
	streamNames = iota
	streamSeries
	streamModes
	streamOrders
	streamRice
	streamNumbers
	streamText
	streamBits
	streamCount
)

// split returns the streams that a body consists of.
func split(body cursor) (streams [streamCount][]byte, err error) {
	for i := range streams {
		streams[i] = body.bytes(body.count(len(body.data)))
	}
	if body.bad {
		return streams, errors.New("streams are cut off")
	}
	if len(body.data) > 0 {
		return streams, fmt.Errorf("%d bytes after the last stream", len(body.data))
	}
	return streams, nil
}

// readDirectory reads the names, and which series and time columns there are.
// count is how many samples they must have together.
func (d *Decoder) readDirectory(streams [streamCount][]byte, count int) error {
	names := cursor{data: streams[streamNames]}
	for i := range d.tables {
		d.tables[i] = readNames(d.tables[i][:0], &names, count)
	}
	if names.bad || len(names.data) > 0 {
		return errors.New("tables of names are malformed")
	}
	in := cursor{data: streams[streamSeries]}
	if d.unit = unitOf(in.byte()); d.unit == 0 {
		return errors.New("unknown unit of time")
	}
	if !d.readTimeColumns(&in, count) || !d.readRefs(&in, count) || len(in.data) > 0 {
		return errors.New("list of series is malformed")
	}
	total := 0
	beyond := func(ref uint32, n int) bool { return uint64(ref) >= uint64(n) } // an int may have 32 bits
	for _, s := range d.series {
		if beyond(s.sensor, len(d.tables[0])) || beyond(s.metric, len(d.tables[1])) || beyond(s.unit, len(d.tables[2])) || beyond(s.times, len(d.times)) {
			return errors.New("series refers to what is not there")
		}
		total += int(d.times[s.times].count) // at most 2^32 in all
	}
	if total != count {
		return fmt.Errorf("series have %d samples: the head says %d", total, count)
	}
	return nil
}

// readNames reads one table, of at most limit names. Each name is a string of
// its own, so that who keeps one does not keep all.
func readNames(table []string, in *cursor, limit int) []string {
	n := in.count(min(limit, len(in.data)))
	lengths := *in
	for range n {
		in.uvarint()
	}
	for range n {
		table = append(table, string(in.bytes(lengths.count(len(in.data)))))
	}
	in.bad = in.bad || lengths.bad
	return table
}

func (d *Decoder) readTimeColumns(in *cursor, count int) bool {
	d.times = d.times[:0]
	at := 0
	for n := in.count(count); n > 0; n-- {
		c := in.count(count - at)
		if c == 0 {
			return false
		}
		d.times = append(d.times, timeColumn{int32(at), int32(c)})
		at += c
	}
	return !in.bad
}

func (d *Decoder) readRefs(in *cursor, count int) bool {
	n := in.count(count)
	d.series = slices.Grow(d.series[:0], n)[:n]
	var before uint32
	for i := range d.series {
		before += uint32(unzigzag(in.uvarint()))
		d.series[i].sensor = before
	}
	for i := range d.series {
		d.series[i].metric = uint32(in.count(count))
	}
	for i := range d.series {
		d.series[i].unit = uint32(in.count(count))
	}
	before = 0
	for i := range d.series {
		before += uint32(unzigzag(in.uvarint()))
		d.series[i].times = before
	}
	return !in.bad
}

// readHeads prepares the streams that columns are read from.
func (d *Decoder) readHeads(streams [streamCount][]byte) {
	d.modes = cursor{data: streams[streamModes]}
	d.text = string(streams[streamText])
	size := len(streams[streamBits]) // the last in body: the slack follows
	d.in = columnReader{
		orders:  cursor{data: streams[streamOrders]},
		ks:      cursor{data: streams[streamRice]},
		numbers: cursor{data: streams[streamNumbers]},
		bits:    bitReader{data: d.body[len(d.body)-size : len(d.body)+bitSlack], size: 8 * size},
	}
}

// checkEnd says whether the columns used up their streams.
func (d *Decoder) checkEnd() error {
	left := len(d.modes.data) + len(d.in.orders.data) + len(d.in.ks.data) + len(d.in.numbers.data) + len(d.text)
	if left > 0 {
		return fmt.Errorf("%d bytes are left in the streams after the last column", left)
	}
	return d.in.bits.end()
}

// readTimes fills d.ticks with the times of all columns in nanoseconds.
func (d *Decoder) readTimes() error {
	last := d.times[len(d.times)-1]
	total := int(last.start + last.count)
	d.ticks = slices.Grow(d.ticks[:0], total)[:total]
	var before int64
	for _, c := range d.times {
		ticks := d.ticks[c.start : c.start+c.count]
		exceptions, err := d.in.read(ticks, before)
		if err != nil {
			return fmt.Errorf("times: %w", err)
		}
		if exceptions {
			return errors.New("times have exceptions")
		}
		before = ticks[0]
	}
	if d.unit > 1 {
		for i := range d.ticks {
			d.ticks[i] *= d.unit
		}
	}
	return nil
}

// readSamples fills samples, which has as many as the series together.
func (d *Decoder) readSamples(samples []touchline.Sample) error {
	for at, s := range d.series {
		stamped := d.isStamped(at)
		c := d.times[s.times]
		n := int(c.count)
		d.values = slices.Grow(d.values[:0], n)[:n]
		sensor, metric, unit := d.tables[0][s.sensor], d.tables[1][s.metric], d.tables[2][s.unit]
		if err := d.readValues(d.values); err != nil {
			return fmt.Errorf("values of %.40q of sensor %.40q: %w", metric, sensor, err)
		}
		for i, t := range d.ticks[c.start : c.start+c.count] {
			samples[i] = touchline.Sample{Sensor: sensor, Metric: metric, Unit: unit, Time: t, Value: d.values[i], Stamped: stamped}
		}
		samples = samples[n:]
	}
	return nil
}
