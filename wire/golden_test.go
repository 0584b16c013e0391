package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"touchline"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with the file, and returns the file's content.
func golden(t *testing.T, name string, got []byte, same func(got, want []byte) bool) []byte {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !same(got, want) {
		t.Errorf("%s: the format changed: got %x", path, got)
	}
	return want
}

// exampleSamples is the worked example of FORMAT.md.
func exampleSamples() []touchline.Sample {
	const start = 1767225600e9 // 2026-01-01T00:00:00Z
	var out []touchline.Sample
	for i, v := range []struct{ heartRate, speed float64 }{{142, 5.25}, {143, 5.3}, {143, 5.31}} {
		at := int64(start) + int64(i)*1e9
		out = append(out,
			touchline.Sample{Sensor: "belt-07", Metric: "heart_rate", Unit: "beat/min", Time: at, Value: touchline.NumberValue(v.heartRate)},
			touchline.Sample{Sensor: "belt-07", Metric: "speed", Unit: "m/s", Time: at, Value: touchline.NumberValue(v.speed)})
	}
	return out
}

var goldenEpoch = touchline.Epoch{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}

// sameBlock compares two blocks. Compressed ones are compared by their
// bodies: another version of zstd may find another way to the same.
func sameBlock(got, want []byte) bool {
	a, b := NewDecoder(), NewDecoder()
	if len(got) < 2 || len(want) < 2 || !bytes.Equal(got[:2], want[:2]) || a.open(got) != nil || b.open(want) != nil {
		return false
	}
	return bytes.Equal(a.body, b.body)
}

func TestGolden_Blocks(t *testing.T) {
	for name, samples := range map[string][]touchline.Sample{
		"empty":      nil,
		"one":        exampleSamples()[:1],
		"example":    exampleSamples(),
		"modes":      everyMode(),
		"compressed": recording(t, "endurance")[:500],
		"match":      matchRound()[:400],
	} {
		t.Run(name, func(t *testing.T) {
			got, err := NewEncoder().Encode(nil, samples)
			if err != nil {
				t.Fatal(err)
			}
			data := golden(t, name+".block", got.Data, sameBlock)
			back, err := NewDecoder().Decode(nil, data)
			if err != nil || !slices.Equal(back, columnOrder(samples)) {
				t.Errorf("%s.block decodes to something else: %v", name, err)
			}
		})
	}
}

// goldenClock is that of the worked example: unset, 12.345 s after power-on,
// by a clock that began at 1970.
var goldenClock = BlockClock{
	Clock:  touchline.Clock{Boot: touchline.Boot(goldenEpoch), State: touchline.ClockUnset, Offset: 250e6},
	Uptime: 12345 * time.Millisecond,
}

// clockedBlock has one sample of the sensor's time and one of the gateway's.
func clockedBlock(t testing.TB) []byte {
	t.Helper()
	got, err := NewEncoder().EncodeWith(nil, clockedSamples(), Attributes{Clock: &goldenClock})
	if err != nil {
		t.Fatal(err)
	}
	return got.Data
}

func clockedSamples() []touchline.Sample {
	samples := exampleSamples()[:2]
	samples[1].Time, samples[1].Stamped = 12e9, true
	return samples
}

func TestGolden_ClockedBlock(t *testing.T) {
	data := golden(t, "clock.block", clockedBlock(t), sameBlock)
	d := NewDecoder()
	back, err := d.Decode(nil, data)
	if err != nil || !slices.Equal(back, clockedSamples()) {
		t.Errorf("clock.block decodes to %+v, %v", back, err)
	}
	if c := d.Attributes().Clock; c == nil || *c != goldenClock {
		t.Errorf("clock.block has the clock %+v", c)
	}
}

func goldenFrame(t testing.TB) []FrameBlock {
	t.Helper()
	var blocks []FrameBlock
	first := uint64(1)
	for i, samples := range [][]touchline.Sample{exampleSamples(), exampleSamples()[:1]} {
		got, err := NewEncoder().Encode(nil, samples)
		if err != nil {
			t.Fatal(err)
		}
		b := FrameBlock{Lane: Lane(i), Block: Block{Epoch: goldenEpoch, First: first, Count: uint32(got.Count), Data: got.Data}}
		b.CRC = b.Sum()
		first += uint64(got.Count)
		blocks = append(blocks, b)
	}
	return blocks
}

func TestGolden_Frame(t *testing.T) {
	blocks := goldenFrame(t)
	got, err := AppendFrame(nil, blocks)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseFrame(nil, golden(t, "example.frame", got, bytes.Equal))
	if err != nil || !slices.EqualFunc(blocks, back, equalFrameBlocks) {
		t.Errorf("example.frame parses to %+v, %v", back, err)
	}
}

func goldenMessages() map[string]Message {
	at := time.Date(2026, 1, 1, 15, 30, 0, 250e6, time.UTC)
	ranges := []EpochRanges{{Epoch: goldenEpoch, Ranges: touchline.Ranges{{First: 1, Last: 40}, {First: 42, Last: touchline.MaxSeq}}}}
	return map[string]Message{
		"hello": &Hello{Gateway: "north-stand", Software: "touchline/0.1.0", Epochs: []Held{{Epoch: goldenEpoch, Oldest: 41, Next: 1041}},
			Clock: "synchronised", Capabilities: []string{"one"}},
		"welcome": &Welcome{Store: "5f2c", Session: 3, Stored: ranges, Window: Window{Bytes: 8 << 20, Blocks: 64},
			MaxFrame: MinFrameBytes, Heartbeat: 5000, Time: at, Capabilities: []string{"one", "two"}},
		"ack":    &Ack{Accepted: ranges, Stored: ranges, Lost: []uint64{7}, Clock: []ClockOffset{{Boot: touchline.Boot(goldenEpoch), Offset: 1767225587_905000000}}, Time: at},
		"resend": &Resend{Epoch: goldenEpoch, Ranges: touchline.Ranges{{First: 5, Last: 5}}},
		"window": &NewWindow{Window: Window{}},
		"goaway": &Goaway{Reason: "drain", ReconnectAfter: 1500, Address: "wss://other.example/v1/uplink"},
		"lost": &Lost{ID: 7, Epoch: goldenEpoch, Ranges: touchline.Ranges{{First: 1, Last: 40}}, Cause: "max_bytes",
			MinTime: 1767225600e9, MaxTime: 1767225640e9},
		"clock": NewClock(touchline.Clock{Boot: touchline.Boot(goldenEpoch), State: touchline.ClockSynchronised, Offset: 1767225587_905000000}),
	}
}

func TestGolden_Messages(t *testing.T) {
	for name, m := range goldenMessages() {
		t.Run(name, func(t *testing.T) {
			got, err := MarshalMessage(m)
			if err != nil {
				t.Fatal(err)
			}
			checkMessage(t, m, golden(t, name+".json", got, bytes.Equal))
		})
	}
}

// TestFormat_ExampleIsTheGoldenFile holds the bytes in FORMAT.md to the file.
func TestFormat_ExampleIsTheGoldenFile(t *testing.T) {
	doc, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	for heading, file := range map[string]string{"Example block": "example.block", "Example frame": "example.frame", "Example block with a clock": "clock.block"} {
		_, section, found := strings.Cut(string(doc), "# "+heading+"\n")
		if !found {
			t.Fatalf("FORMAT.md has no heading %q", heading)
		}
		section, _, _ = strings.Cut(section, "\n#")
		var digits strings.Builder
		for _, row := range regexp.MustCompile(`(?m)^    ((?:[0-9a-f]{2} ?)+)`).FindAllStringSubmatch(section, -1) {
			digits.WriteString(strings.ReplaceAll(row[1], " ", ""))
		}
		got, err := hex.DecodeString(digits.String())
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("testdata", "golden", file))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s in FORMAT.md is\n%x\nbut %s is\n%x", heading, got, file, want)
		}
	}
}
