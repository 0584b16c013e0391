package archive_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"touchline"
	"touchline/archive"
	"touchline/identity"
	"touchline/wire"
)

var update = flag.Bool("update", false, "write the golden file")

// key is the private key of the tests: its seed is 32 bytes of n.
func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func header() archive.Header {
	return archive.Header{
		ID: archive.ID{1, 2, 3}, Gateway: "venue-1", Key: identity.Public(key(1)),
		Created: time.Date(2026, 11, 22, 20, 30, 15, 0, time.UTC), Software: "touchline/test",
	}
}

// block makes a block that claims count samples. What is in it is nothing that
// decodes: an archive carries blocks as they are.
func block(t testing.TB, epoch byte, first uint64, count int) wire.Block {
	t.Helper()
	data := make([]byte, 16+2*count)
	for i := range data {
		data[i] = byte(i) * epoch
	}
	b := wire.Block{Epoch: touchline.Epoch{epoch}, First: first, Count: uint32(count), Data: data}
	b.CRC = b.Sum()
	return b
}

var lost = []wire.Lost{{
	ID: 77, Epoch: touchline.Epoch{1}, Ranges: touchline.Ranges{{First: 31, Last: 40}},
	Cause: "max_bytes", MinTime: 1_780_000_000_000_000_000, MaxTime: 1_780_000_009_000_000_000,
}}

// write makes an archive of the blocks, and of lost where it is true.
func write(t testing.TB, k ed25519.PrivateKey, h archive.Header, blocks []wire.Block, withLost bool) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := archive.NewWriterOf(&out, k, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Blocks(blocks); err != nil {
		t.Fatal(err)
	}
	if withLost {
		if err := w.Lost(lost); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.End(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func example(t testing.TB) []byte {
	t.Helper()
	return write(t, key(1), header(), []wire.Block{block(t, 1, 1, 30), block(t, 1, 41, 10), block(t, 2, 1, 5)}, true)
}

func anybody(archive.Header) error { return nil }

// TestFormat_Golden: archives are read by other versions, years later.
func TestFormat_Golden(t *testing.T) {
	path := filepath.Join("testdata", "golden", "example.touchline")
	got := example(t)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, s, err := archive.Verify(bytes.NewReader(want), anybody)
	if err != nil {
		t.Fatalf("the golden file is not read any more: %v", err)
	}
	if h != header() || s.Segments != 2 || s.Blocks != 3 || s.Samples != 45 || s.Lost != 1 || len(s.Epochs) != 2 ||
		s.Epochs[0] != (archive.Contents{Epoch: touchline.Epoch{1}, First: 1, Last: 50, Blocks: 2, Samples: 40}) {
		t.Errorf("the golden file says %+v %+v", h, s)
	}
	if !bytes.Equal(got, want) {
		t.Error("the same archive is written with other bytes: is that a new version? (-update writes the file)")
	}
}

func TestRoundTrip_GivesBackEveryBlock(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var blocks []wire.Block
	for epoch := byte(1); epoch <= 3; epoch++ {
		for first := uint64(1); first < 60_000; {
			b := block(t, epoch, first, 1+r.IntN(300))
			if r.IntN(10) > 0 { // else a hole
				blocks = append(blocks, b)
			}
			first = b.Last() + 1
		}
	}
	data := write(t, key(1), header(), blocks, true)
	a, err := archive.NewReader(iotest.HalfReader(bytes.NewReader(data)))
	if err != nil {
		t.Fatal(err)
	}
	var got []wire.Block
	segments, losses := 0, 0
	for {
		seg, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		segments++
		for _, b := range seg.Blocks {
			b.Data = bytes.Clone(b.Data)
			got = append(got, b)
		}
		losses += len(seg.Lost)
	}
	if len(got) != len(blocks) || losses != len(lost) {
		t.Fatalf("%d blocks and %d lost records, want %d and %d", len(got), losses, len(blocks), len(lost))
	}
	for i := range got {
		if got[i].Epoch != blocks[i].Epoch || got[i].First != blocks[i].First || got[i].CRC != blocks[i].CRC || !bytes.Equal(got[i].Data, blocks[i].Data) {
			t.Fatalf("block %d is %s/%d", i, got[i].Epoch, got[i].First)
		}
	}
	if segments < 3 {
		t.Errorf("%d segments: the test does not see their bounds", segments)
	}
}

// parts returns where the parts of an archive begin: the header, each segment,
// and the end of the file.
func parts(t testing.TB, data []byte) []int {
	t.Helper()
	const magic, sig = 15, 64
	at := magic + 4 + int(binary.BigEndian.Uint32(data[magic:])) + sig
	list := []int{0}
	for at < len(data) {
		list = append(list, at)
		at += 5 + int(binary.BigEndian.Uint32(data[at+1:])) + sig
	}
	return append(list, len(data))
}

// TestVerify_DamageTable: what is not what was signed, all of it, is refused
// whole, and says why.
func TestVerify_DamageTable(t *testing.T) {
	whole := example(t)
	p := parts(t, whole) // header, blocks, lost, end, length
	other := header()
	other.ID = archive.ID{9}
	sibling := write(t, key(1), other, []wire.Block{block(t, 1, 1, 30), block(t, 1, 41, 10), block(t, 2, 1, 5)}, true)
	forged := write(t, key(2), header(), []wire.Block{block(t, 1, 1, 30)}, false) // names another key than it was signed with
	cut := func(n int) []byte { return bytes.Clone(whole[:n]) }
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 0x10
		return b
	}
	join := func(pieces ...[]byte) []byte { return bytes.Join(pieces, nil) }
	put := func(at int, v uint32) []byte {
		b := bytes.Clone(whole)
		binary.BigEndian.PutUint32(b[at:], v)
		return b
	}
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "cut off"},
		{"within the magic", cut(7), "cut off"},
		{"within the header", cut(40), "cut off"},
		{"within the header's signature", cut(p[1] - 1), "cut off"},
		{"after the header", cut(p[1]), "cut off"},
		{"within a segment's prefix", cut(p[1] + 2), "cut off"},
		{"within a segment", cut(p[1] + 100), "cut off"},
		{"after a segment", cut(p[2]), "cut off"},
		{"before the end", cut(p[3]), "cut off"},
		{"last byte missing", cut(len(whole) - 1), "cut off"},
		{"one byte more", append(cut(len(whole)), 0), "something follows"},
		{"twice", join(whole, whole), "something follows"},
		{"another file", []byte(strings.Repeat("SQLite format 3\x00", 10)), "does not begin as an archive"},
		{"as text", bytes.ReplaceAll(whole, []byte("\r\n"), []byte("\n")), "does not begin as an archive"},
		{"a newer version", func() []byte { b := cut(len(whole)); b[14] = 2; return b }(), "use a newer one"},
		{"length of the header", put(15, 1<<30), "at most"},
		{"header changed", bytes.Replace(whole, []byte("venue-1"), []byte("venue-2"), 1), "header's signature"},
		{"header's signature changed", flip(p[1] - 1), "header's signature"},
		{"unsigned", join(whole[:p[1]-64], make([]byte, 64), whole[p[1]:]), "header's signature"},
		{"signed with another key", forged, "header's signature"},
		{"kind", flip(p[1]), "unknown kind"},
		{"kind of another segment", func() []byte { b := cut(len(whole)); b[p[1]] = 2; return b }(), "signature of segment 0"},
		{"length of a segment", put(p[1]+1, 1<<31), "at most"},
		{"length of a segment, by one", put(p[1]+1, binary.BigEndian.Uint32(whole[p[1]+1:])-1), "signature of segment 0"},
		{"data of a block", flip(p[1] + 60), "signature of segment 0"},
		{"signature of a segment", flip(p[2] - 3), "signature of segment 0"},
		{"lost record", flip(p[2] + 20), "signature of segment 1"},
		{"summary", flip(p[3] + 20), "signature of segment 2"},
		{"a segment left out", join(whole[:p[1]], whole[p[2]:]), "signature of segment 0"},
		{"a segment twice", join(whole[:p[2]], whole[p[1]:]), "signature of segment 1"},
		{"segments exchanged", join(whole[:p[1]], whole[p[2]:p[3]], whole[p[1]:p[2]], whole[p[3]:]), "signature of segment 0"},
		{"a segment of another archive", join(whole[:p[1]], sibling[p[1]:p[2]], whole[p[2]:]), "signature of segment 0"},
		{"the end of another archive", join(whole[:p[3]], sibling[p[3]:]), "signature of segment 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := archive.Verify(bytes.NewReader(tc.data), anybody)
			var wrong *archive.Error
			if !errors.As(err, &wrong) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("have %v, want an *Error with %q", err, tc.want)
			}
		})
	}
}

// TestVerify_FindsEveryFlippedBit tries one bit of each byte, and each length;
// its short form, of each thirteenth.
func TestVerify_FindsEveryFlippedBit(t *testing.T) {
	whole := write(t, key(1), header(), []wire.Block{block(t, 1, 1, 30), block(t, 2, 1, 5)}, true)
	refused := func(data []byte) bool {
		_, _, err := archive.Verify(bytes.NewReader(data), anybody)
		return err != nil
	}
	if refused(whole) {
		t.Fatal("the archive itself is refused")
	}
	step, tried := 13, 0
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		step = 1
	}
	for at := 0; at < len(whole); at += step {
		tried++
		b := bytes.Clone(whole)
		b[at] ^= 1 << (at % 8)
		if !refused(b) {
			t.Errorf("byte %d of %d: a flipped bit was taken", at, len(whole))
		}
		if !refused(whole[:at]) {
			t.Errorf("cut at %d of %d: taken", at, len(whole))
		}
	}
	t.Logf("MEASURED archive: %d flipped bits and %d cuts of a signed archive, all refused", tried, tried)
}

// TestVerify_RefusesWhatASignerMayNotSay: a key that is trusted signs an
// archive that breaks the format.
func TestVerify_RefusesWhatASignerMayNotSay(t *testing.T) {
	bad := block(t, 1, 1, 30)
	bad.CRC++
	w, err := archive.NewWriter(io.Discard, key(1), header())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Blocks([]wire.Block{bad}); err == nil {
		t.Error("a block that does not hold was written")
	}
	if _, err := w.End(); err == nil {
		t.Error("the archive was ended after an error")
	}
	for name, blocks := range map[string][]wire.Block{
		"twice":        {block(t, 1, 1, 3), block(t, 1, 1, 3)},
		"overlap":      {block(t, 1, 1, 3), block(t, 1, 3, 3)},
		"backwards":    {block(t, 1, 4, 3), block(t, 1, 1, 3)},
		"epochs mixed": {block(t, 1, 1, 3), block(t, 2, 1, 3), block(t, 1, 4, 3)},
	} {
		data := write(t, key(1), header(), blocks, false)
		if _, _, err := archive.Verify(bytes.NewReader(data), anybody); err == nil || !strings.Contains(err.Error(), "out of order") {
			t.Errorf("%s: %v, want it refused as out of order", name, err)
		}
	}
	for name, h := range map[string]archive.Header{
		"no gateway": {ID: archive.ID{1}},
		"bad id":     {ID: archive.ID{1}, Gateway: "../x"},
		"software":   {ID: archive.ID{1}, Gateway: "a", Software: strings.Repeat("x", 1000)},
		"no ID":      {Gateway: "a"},
	} {
		if _, err := archive.NewWriterOf(io.Discard, key(1), h); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

func TestVerify_AsksForTrustFirst(t *testing.T) {
	no := errors.New("who is that?")
	h, _, err := archive.Verify(io.MultiReader(bytes.NewReader(example(t)[:400]), iotest.ErrReader(errors.New("read on"))), func(archive.Header) error { return no })
	if !errors.Is(err, no) || h.Gateway != "venue-1" {
		t.Errorf("have %v of %q, want the answer of who was asked", err, h.Gateway)
	}
}

// TestExcerpt_ProvesItself: a segment goes alone to the cloud.
func TestExcerpt_ProvesItself(t *testing.T) {
	a, err := archive.NewReader(bytes.NewReader(example(t)))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; ; n++ {
		seg, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		excerpt := a.Excerpt()
		h, got, err := archive.ReadExcerpt(excerpt)
		if err != nil || h != header() || got.Kind != seg.Kind || got.Index != seg.Index || len(got.Blocks) != len(seg.Blocks) || len(got.Lost) != len(seg.Lost) {
			t.Fatalf("segment %d: %v %+v", n, err, got)
		}
		for at := 0; at < len(excerpt); at += 17 {
			b := bytes.Clone(excerpt)
			b[at] ^= 1 << (at % 8)
			if _, _, err := archive.ReadExcerpt(b); err == nil {
				t.Errorf("segment %d, byte %d: a flipped bit was taken", n, at)
			}
		}
		if _, _, err := archive.ReadExcerpt(append(excerpt, 0)); err == nil {
			t.Error("a byte more was taken")
		}
	}
	if n != 3 {
		t.Errorf("%d segments, want 3", n)
	}
}

func TestWriter_SaysWhatTheDiskSays(t *testing.T) {
	full := errors.New("no space")
	for room := range 3 {
		w, err := archive.NewWriter(&failing{room: room, err: full}, key(1), header())
		if err == nil {
			err = errors.Join(w.Blocks([]wire.Block{block(t, 1, 1, 9)}), w.Lost(lost))
			_, ended := w.End()
			err = errors.Join(err, ended)
		}
		if !errors.Is(err, full) {
			t.Errorf("after %d writes: %v", room, err)
		}
	}
}

type failing struct {
	room int
	err  error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.room--; f.room < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func FuzzVerify(f *testing.F) {
	whole := example(f)
	p := parts(f, whole)
	f.Add(whole)
	for _, at := range p[:len(p)-1] {
		f.Add(whole[:at+3])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, err := archive.Verify(bytes.NewReader(data), anybody)
		if err == nil && !bytes.Equal(data, whole) {
			t.Error("something that nobody signed was taken")
		}
		_, _, _ = archive.ReadExcerpt(data)
	})
}

// FuzzSigned lets the fuzzer say what is signed: behind the signature nothing
// may be taken on trust either.
func FuzzSigned(f *testing.F) {
	whole := example(f)
	p := parts(f, whole)
	for i := 1; i < len(p)-1; i++ {
		f.Add(whole[p[i]], whole[p[i]+5:p[i+1]-64])
	}
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		if len(payload) > archive.MaxSegmentBytes {
			return
		}
		data := archive.SignSegment(key(1), header(), kind, payload)
		_, seg, err := archive.ReadExcerpt(data)
		if err != nil {
			return
		}
		for i := range seg.Blocks {
			if err := seg.Blocks[i].Check(); err != nil {
				t.Error(err)
			}
		}
		if fmt.Sprint(seg.Kind) != fmt.Sprint(kind) {
			t.Errorf("kind %d was read as %d", kind, seg.Kind)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	var blocks []wire.Block
	for first := uint64(1); first < 2_000_000; first += 5000 {
		blocks = append(blocks, block(b, 1, first, 5000))
	}
	data := write(b, key(1), header(), blocks, false)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, _, err := archive.Verify(bytes.NewReader(data), anybody); err != nil {
			b.Fatal(err)
		}
	}
}
