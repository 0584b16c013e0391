package wire

import (
	"bytes"
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"touchline"
)

// someBlocks returns samples and their blocks: stored and compressed, of every
// mode.
func someBlocks(t testing.TB) (samples [][]touchline.Sample, blocks [][]byte) {
	t.Helper()
	samples = append(samples, nil, exampleSamples(), everyMode())
	for _, name := range recordings {
		samples = append(samples, recording(t, name)[:1000])
	}
	for seed := range int64(5) {
		samples = append(samples, randomSamples(newRandom(seed), 60))
	}
	for i := range samples {
		got, err := NewEncoder().Encode(nil, samples[i])
		if err != nil || got.Count != len(samples[i]) {
			t.Fatal(got.Count, err)
		}
		blocks = append(blocks, got.Data)
	}
	return samples, blocks
}

// everyMode has a column of each mode, one with exceptions among them.
func everyMode() (out []touchline.Sample) {
	add := func(metric string, i int, v touchline.Value) {
		out = append(out, touchline.Sample{Sensor: "s-1", Metric: metric, Time: 1767225600e9 + int64(i)*40e6, Value: v})
	}
	for i := range 32 {
		x := float64(i)
		add("whole", i, touchline.NumberValue(140+x))
		add("decimal", i, touchline.NumberValue((x*x-7)/100))
		add("semicircles", i, touchline.NumberValue((703_000_000+x*x)*180/(1<<31)))
		add("float", i, touchline.NumberValue(math.Sqrt(x)*math.Pi))
		add("gaps", i, touchline.NumberValue([]float64{x, math.NaN()}[i/31]))
		add("text", i, touchline.TextValue(strings.Repeat("é", i%4)))
		add("bytes", i, touchline.BytesValue(strings.Repeat("\x00\xff", i%3)))
		add("boolean", i, touchline.BoolValue(i%5 == 0))
		add("mixed", i, []touchline.Value{touchline.NumberValue(x), touchline.TextValue("t"), touchline.BoolValue(true), touchline.BytesValue("b")}[i%4])
	}
	return out
}

func TestDecode_AppendsAndKeepsNothingOfItsInput(t *testing.T) {
	samples, blocks := someBlocks(t)
	d := NewDecoder()
	head := []touchline.Sample{{Sensor: "before"}}
	var all [][]touchline.Sample
	for i, data := range blocks {
		input := slices.Clone(data)
		got, err := d.Decode(slices.Clone(head), input)
		if err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		if !bytes.Equal(input, data) {
			t.Fatalf("block %d: the input was changed", i)
		}
		for j := range input {
			input[j] = 0xaa
		}
		all = append(all, got)
	}
	for i, got := range all { // after the decoder did the others
		if got[0] != head[0] || !slices.Equal(got[1:], columnOrder(samples[i])) {
			t.Errorf("block %d changed after it was decoded", i)
		}
	}
}

func TestDecode_RefusesEveryTruncation(t *testing.T) {
	_, blocks := someBlocks(t)
	d := NewDecoder()
	dst := []touchline.Sample{{Sensor: "before"}}
	for i, data := range blocks {
		for n := range data {
			if got, err := d.Decode(dst, data[:n]); err == nil || len(got) != 1 {
				t.Fatalf("block %d cut to %d of %d bytes: %d samples, error %v", i, n, len(data), len(got), err)
			}
		}
	}
}

func TestDecode_RefusesTrailingGarbage(t *testing.T) {
	_, blocks := someBlocks(t)
	d := NewDecoder()
	for i, data := range blocks {
		for _, tail := range [][]byte{{0}, {1}, {0xff}, make([]byte, 9), {0x28, 0xb5, 0x2f, 0xfd}} {
			if _, err := d.Decode(nil, append(slices.Clone(data), tail...)); err == nil {
				t.Errorf("block %d with %x behind it is accepted", i, tail)
			}
		}
	}
}

// TestDecode_SurvivesDamage flips each bit of a stored block. Where the result
// still is a block (the CRC beside it would tell), it must decode to something
// that comes through a round trip.
func TestDecode_SurvivesDamage(t *testing.T) {
	for _, samples := range [][]touchline.Sample{exampleSamples(), everyMode()} {
		data := storedBlock(t, samples)
		d := NewDecoder()
		for bit := range 8 * len(data) {
			data[bit/8] ^= 1 << (bit % 8)
			checkAnyBlock(t, d, data)
			data[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// storedBlock returns samples as a block that is not compressed.
func storedBlock(t testing.TB, samples []touchline.Sample) []byte {
	t.Helper()
	e := NewEncoder()
	if _, err := e.Encode(nil, samples); err != nil {
		t.Fatal(err)
	}
	return append([]byte{blockVersion, 0}, e.body...)
}

// checkAnyBlock decodes data; what decodes must survive another round trip.
func checkAnyBlock(t testing.TB, d *Decoder, data []byte) {
	t.Helper()
	samples, err := d.Decode(nil, data)
	if err != nil {
		if len(samples) > 0 {
			t.Fatalf("%d samples besides the error %v", len(samples), err)
		}
		return
	}
	if len(samples) > MaxBlockSamples {
		t.Fatalf("%d samples", len(samples))
	}
	roundTrip(t, samples)
}

func TestDecode_SkipsUnknownAttributes(t *testing.T) {
	want := exampleSamples()
	stored := storedBlock(t, want)
	data := []byte{blockVersion, 0, 2, 0x80, 0x20, 3, 'a', 'b', 'c', 7, 0} // keys 4096 and 7
	data = append(data, stored[3:]...)
	got, err := NewDecoder().Decode(nil, data)
	if err != nil || !slices.Equal(got, columnOrder(want)) {
		t.Fatalf("got %d samples, %v", len(got), err)
	}
}

func TestDecode_SaysWhatIsWrong(t *testing.T) {
	good := storedBlock(t, exampleSamples())
	with := func(at int, b byte) []byte {
		data := slices.Clone(good)
		data[at] = b
		return data
	}
	strange := append([]byte{0, 1, 1, 1}, binary.AppendUvarint(nil, 2<<31)...) // sensor 2^31, which an int of 32 bits has below 0
	strange = append(strange, 0, 0, 0)
	strange = append([]byte{blockVersion, 0, 0, 1, 8, 1, 1, 'a', 1, 1, 'm', 1, 0, byte(len(strange))}, strange...)
	strange = append(strange, make([]byte, streamCount-2)...)
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"a series of no sensor": {strange, "refers to what is not there"},

		"nothing":       {nil, "head is cut off"},
		"version":       {with(0, 2), "version 2: want 1"},
		"flags":         {with(1, 0x80), "unknown flags 0x80"},
		"not zstd":      {with(1, flagCompressed), "decompress"},
		"count":         {with(3, good[3]+1), "series have"},
		"time unit":     {with(5+int(good[4])+1, 5), "unit of time"},
		"above maximum": {make([]byte, MaxBlockBytes+1), "at most 196608"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewDecoder().Decode(nil, test.data)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
}

// allocated returns the bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// bombs are small inputs that claim or hold a lot.
func bombs() map[string][]byte {
	zip := func(body []byte) []byte {
		return append([]byte{blockVersion, flagCompressed}, NewEncoder().zstd.EncodeAll(body, nil)...)
	}
	claim := []byte{blockVersion, flagCompressed, 0x28, 0xb5, 0x2f, 0xfd, 0xe0} // zstd, content size of 8 bytes
	huge := binary.LittleEndian.AppendUint64(slices.Clone(claim), 1<<40)
	largest := binary.LittleEndian.AppendUint64(slices.Clone(claim), MaxRawBytes)
	uvarints := func(vs ...uint64) (out []byte) {
		for _, v := range vs {
			out = binary.AppendUvarint(out, v)
		}
		return out
	}
	stored := func(vs ...uint64) []byte { return append([]byte{blockVersion, 0}, uvarints(vs...)...) }
	manyNames := func() []byte { // as many empty names as the body can hold
		names := append(uvarints(MaxRawBytes/2), make([]byte, MaxRawBytes/2)...)
		body := append(uvarints(0, MaxBlockSamples, uint64(len(names))), names...)
		return append(body, make([]byte, 7)...)
	}
	return map[string][]byte{
		"zeros beyond the limit":   zip(make([]byte, 10*MaxRawBytes)),
		"zeros up to the limit":    zip(make([]byte, MaxRawBytes)),
		"attributes":               zip(append(uvarints(MaxRawBytes/2), make([]byte, MaxRawBytes-8)...)),
		"claims 1 TiB":             append(huge, 1, 0, 0),
		"claims the limit":         append(largest, 1, 0, 0),
		"claims 2^63 samples":      stored(0, 1<<63),
		"claims all samples":       stored(0, MaxBlockSamples),
		"claims long streams":      stored(0, 1, 1<<62),
		"claims many attributes":   stored(1 << 62),
		"claims a long attribute":  stored(1, 1, 1<<62),
		"many names":               zip(manyNames()),
		"series beyond the sample": stored(0, 1, 0, 4, 0, 1, 1, 1<<20, 0, 0, 0, 0, 0, 0),
	}
}

func TestDecode_BombsStayWithinLimits(t *testing.T) {
	for name, data := range bombs() {
		t.Run(name, func(t *testing.T) {
			if len(data) > 16<<10 {
				t.Fatalf("the bomb has %d bytes", len(data))
			}
			var err error
			got := allocated(func() { _, err = NewDecoder().Decode(nil, data) })
			if err == nil {
				t.Error("accepted")
			}
			// The body twice over while zstd finishes it, and its own tables.
			if limit := uint64(3*MaxRawBytes + 4<<20); got > limit {
				t.Errorf("%d bytes of input made it allocate %d: want at most %d", len(data), got, limit)
			}
		})
	}
}

func TestDecode_LargestBlockOfFewBytes(t *testing.T) {
	samples := make([]touchline.Sample, MaxBlockSamples)
	for i := range samples {
		samples[i] = touchline.Sample{Sensor: "s", Metric: "m", Time: int64(i) * 1e9, Value: touchline.NumberValue(21)}
	}
	got, err := NewEncoder().Encode(nil, samples)
	if err != nil || got.Count != len(samples) || len(got.Data) > 100 {
		t.Fatalf("%d samples in %d bytes, %v", got.Count, len(got.Data), err)
	}
	d, dst := NewDecoder(), make([]touchline.Sample, 0, MaxBlockSamples)
	perSample := func() float64 {
		return float64(allocated(func() { dst, err = d.Decode(dst[:0], got.Data) })) / MaxBlockSamples
	}
	if first := perSample(); err != nil || first > 128 { // ticks, integers, floats, values and the decoder's tables
		t.Fatalf("%v bytes a sample, %v", first, err)
	}
	if again := perSample(); err != nil || again > 1 {
		t.Fatalf("%v bytes a sample of a decoder that is used again, %v", again, err)
	}
	if !slices.Equal(dst, samples) {
		t.Fatal("samples changed")
	}
}

func TestDecode_SharesNames(t *testing.T) {
	samples := recording(t, "gym_imu")[:1000]
	got, err := NewEncoder().Encode(nil, samples)
	if err != nil {
		t.Fatal(err)
	}
	d, dst := NewDecoder(), make([]touchline.Sample, 0, 1000)
	allocs := testing.AllocsPerRun(20, func() { dst, err = d.Decode(dst[:0], got.Data) })
	if err != nil || allocs > 20 { // a sensor or three, six metrics, two units
		t.Fatalf("%v allocations for 1,000 samples, %v", allocs, err)
	}
}

func FuzzDecode(f *testing.F) {
	_, blocks := someBlocks(f)
	for _, data := range blocks {
		f.Add(data)
	}
	for _, data := range bombs() {
		f.Add(data)
	}
	f.Add(storedBlock(f, everyMode()))
	f.Add(clockedBlock(f))
	f.Fuzz(func(t *testing.T, data []byte) { checkAnyBlock(t, NewDecoder(), data) })
}
