package wire

import (
	"bytes"
	"errors"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"touchline"
)

func equalFrameBlocks(a, b FrameBlock) bool {
	return a.Epoch == b.Epoch && a.First == b.First && a.Count == b.Count && a.CRC == b.CRC && a.Lane == b.Lane && bytes.Equal(a.Data, b.Data)
}

func TestFrame_RoundTrip(t *testing.T) {
	r := randomOf(t)
	for range 100 {
		blocks := make([]FrameBlock, 1+r.Intn(20))
		for i := range blocks {
			blocks[i] = randomFrameBlock(r)
		}
		frame, err := AppendFrame([]byte("head"), blocks)
		if err != nil {
			t.Fatal(err)
		}
		if want := len("head") + FrameBytes(blocks...); len(frame) != want {
			t.Fatalf("frame has %d bytes: FrameBytes says %d", len(frame), want)
		}
		got, err := ParseFrame([]FrameBlock{{Lane: Backlog}}, frame[4:])
		if err != nil || got[0].Lane != Backlog || !slices.EqualFunc(got[1:], blocks, equalFrameBlocks) {
			t.Fatalf("got %+v, %v", got, err)
		}
		again, err := AppendFrame(nil, got[1:])
		if err != nil || !bytes.Equal(again, frame[4:]) {
			t.Fatalf("the same blocks make another frame: %v", err)
		}
	}
}

func randomFrameBlock(r *rand.Rand) FrameBlock {
	b := FrameBlock{Lane: Lane(r.Intn(2)), Block: Block{First: r.Uint64(), Count: r.Uint32(), Data: make([]byte, r.Intn(300))}}
	r.Read(b.Epoch[:])
	r.Read(b.Data)
	b.CRC = b.Sum()
	return b
}

func TestFrame_LargestBlockFitsSmallestFrame(t *testing.T) {
	b := FrameBlock{Block: Block{Data: make([]byte, MaxBlockBytes)}}
	if n := FrameBytes(b); n > MinFrameBytes {
		t.Fatalf("a frame with the largest block has %d bytes: the smallest limit is %d", n, MinFrameBytes)
	}
	frame, err := AppendFrame(nil, []FrameBlock{b})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseFrame(nil, frame); err != nil {
		t.Fatal(err)
	}
}

func TestAppendFrame_RefusesWhatParseFrameWould(t *testing.T) {
	for name, test := range map[string]struct {
		blocks []FrameBlock
		want   string
	}{
		"none":     {nil, "0 blocks"},
		"too many": {make([]FrameBlock, MaxBlocksPerFrame+1), "1025 blocks"},
		"large":    {[]FrameBlock{{Block: Block{Data: make([]byte, MaxBlockBytes+1)}}}, "196609 bytes"},
		"lane":     {[]FrameBlock{{Lane: 2}}, "lane 2"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := AppendFrame([]byte("head"), test.blocks)
			if err == nil || !strings.Contains(err.Error(), test.want) || string(got) != "head" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestParseFrame_RefusesBrokenStructure(t *testing.T) {
	good, err := AppendFrame(nil, goldenFrame(t))
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, b ...byte) []byte {
		data := slices.Clone(good)
		copy(data[at:], b)
		return data
	}
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"empty":         {nil, "0 bytes"},
		"version":       {change(0, 9), "version 9"},
		"flags":         {change(1, 1), "flags 0x01"},
		"no blocks":     {change(2, 0, 0), "0 blocks"},
		"many blocks":   {change(2, 0xff, 0xff), "65535 blocks"},
		"one too many":  {change(2, 0, 3), "block 3 of 3"},
		"one too few":   {change(2, 0, 1), "after its last block"},
		"long data":     {change(4+32, 0xff, 0xff, 0xff, 0xff), "4294967295 bytes"},
		"lane":          {change(4+36, 2), "lane 2"},
		"reserved":      {change(4+39, 1), "reserved bytes are 000001"},
		"trailing byte": {append(slices.Clone(good), 0), "1 bytes after"},
	} {
		t.Run(name, func(t *testing.T) {
			dst := []FrameBlock{{Lane: Backlog}}
			got, err := ParseFrame(dst, test.data)
			if err == nil || !strings.Contains(err.Error(), test.want) || len(got) != 1 {
				t.Errorf("got %d blocks, %v: want …%s…", len(got), err, test.want)
			}
		})
	}
	for n := range good {
		if _, err := ParseFrame(nil, good[:n]); err == nil {
			t.Errorf("cut to %d of %d bytes: accepted", n, len(good))
		}
	}
}

func TestParseFrame_DamageStaysWithItsBlock(t *testing.T) {
	blocks := goldenFrame(t)
	frame, err := AppendFrame(nil, blocks)
	if err != nil {
		t.Fatal(err)
	}
	structural := map[int]bool{}
	for _, at := range []int{32, 33, 34, 35, 36, 37, 38, 39} { // length, lane, reserved
		structural[FrameHeaderBytes+at] = true
	}
	end := FrameHeaderBytes + BlockHeaderBytes + len(blocks[0].Data)
	for bit := 8 * FrameHeaderBytes; bit < 8*end; bit++ {
		if structural[bit/8] {
			continue
		}
		frame[bit/8] ^= 1 << (bit % 8)
		got, err := ParseFrame(nil, frame)
		if err != nil {
			t.Fatalf("bit %d: %v", bit, err)
		}
		if got[0].Check() == nil {
			t.Errorf("bit %d: the damaged block passes", bit)
		}
		if err := got[1].Check(); err != nil {
			t.Errorf("bit %d: the other block: %v", bit, err)
		}
		frame[bit/8] ^= 1 << (bit % 8)
	}
}

func TestParseFrame_DataCannotGrowIntoTheNextBlock(t *testing.T) {
	frame, err := AppendFrame(nil, goldenFrame(t))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := ParseFrame(nil, frame)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(blocks[0].Data, "overwrites the header of the next"...)
	if err := blocks[1].Check(); err != nil {
		t.Error(err)
	}
}

func TestBlockCheck_SaysWhatIsWrong(t *testing.T) {
	good := goldenFrame(t)[0].Block
	sealed := func(change func(*Block)) Block { // with a CRC that holds
		b := good
		change(&b)
		b.CRC = b.Sum()
		return b
	}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		block Block
		want  string
	}{
		"no samples":     {sealed(func(b *Block) { b.Count = 0 }), "count of 0"},
		"many samples":   {sealed(func(b *Block) { b.Count = MaxBlockSamples + 1 }), "count of 65537"},
		"number 0":       {sealed(func(b *Block) { b.First = 0 }), "out of bounds"},
		"number 2^53":    {sealed(func(b *Block) { b.First = touchline.MaxSeq }), "out of bounds"},
		"numbers wrap":   {sealed(func(b *Block) { b.First = 1<<64 - 1 }), "out of bounds"},
		"large":          {sealed(func(b *Block) { b.Data = make([]byte, MaxBlockBytes+1) }), "at most 196608"},
		"another number": {func() Block { b := good; b.First++; return b }(), "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.block.Check(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
	damaged := good
	damaged.CRC++
	var crc *CRCError
	if err := damaged.Check(); !errors.As(err, &crc) || crc.Range != good.Range() || crc.Epoch != good.Epoch || crc.Got != good.CRC {
		t.Errorf("got %+v", crc)
	}
}

func TestBlockSum_IsCRC32C(t *testing.T) {
	// RFC 3720, appendix B.4: 32 bytes of zeros give 8a9136aa. Epoch, First
	// and Count are the first 28 of them.
	b := Block{Data: make([]byte, 4)}
	if got := b.Sum(); got != 0x8a9136aa {
		t.Errorf("got %08x, want 8a9136aa", got)
	}
}

func FuzzParseFrame(f *testing.F) {
	good, err := AppendFrame(nil, goldenFrame(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{1, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		blocks, err := ParseFrame(nil, data)
		if err != nil {
			return
		}
		for i := range blocks {
			_ = blocks[i].Check()
		}
		again, err := AppendFrame(nil, blocks)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x comes back as %x, %v", data, again, err)
		}
	})
}
