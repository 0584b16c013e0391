package cloud_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"touchline"
	"touchline/archive"
	"touchline/cloud"
	"touchline/identity"
	"touchline/wire"
)

// keyOf is the private key of a gateway in these tests.
func keyOf(gateway string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, gateway)
	return ed25519.NewKeyFromSeed(seed)
}

// madeBlock encodes count samples of one sensor.
func madeBlock(t testing.TB, epoch byte, first uint64, count int) wire.Block {
	t.Helper()
	samples := make([]touchline.Sample, count)
	for i := range samples {
		n := int(first) + i
		samples[i] = touchline.Sample{Sensor: "belt", Metric: "heart_rate", Time: 1_780_000_000_000_000_000 + int64(n)*1e9, Value: touchline.NumberValue(float64(n))}
	}
	e, err := wire.NewEncoder().Encode(nil, samples)
	if err != nil {
		t.Fatal(err)
	}
	b := wire.Block{Epoch: touchline.Epoch{epoch}, First: first, Count: uint32(count), Data: e.Data}
	b.CRC = b.Sum()
	return b
}

// archiveOf returns a gateway's archive.
func archiveOf(t testing.TB, gateway string, key ed25519.PrivateKey, lost []wire.Lost, blocks ...wire.Block) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := archive.NewWriter(&out, key, archive.Header{Gateway: gateway})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Blocks(blocks), w.Lost(lost)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.End(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type keyed interface {
	cloud.Store
	AddGatewayKey(ctx context.Context, gateway string, key identity.PublicKey) error
}

func addKey(t testing.TB, store cloud.Store, gateway string) {
	t.Helper()
	if err := store.(keyed).AddGatewayKey(t.Context(), gateway, identity.Public(keyOf(gateway))); err != nil {
		t.Fatal(err)
	}
}

func samplesOf(t testing.TB, store cloud.Store) (n int) {
	t.Helper()
	err := store.Samples(t.Context(), cloud.Query{}, func(r cloud.Record) error {
		n++
		if r.Gateway != "arena" || int(r.Value.Float()) != int(r.Seq) {
			t.Errorf("the store has %+v", r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestImport_RecordsOnce(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		addKey(t, store, "arena")
		lost := []wire.Lost{{ID: 7, Epoch: touchline.Epoch{1}, Ranges: touchline.Ranges{{First: 31, Last: 40}}, Cause: "max_bytes"}}
		blocks := []wire.Block{madeBlock(t, 1, 1, 30), madeBlock(t, 1, 41, 10), madeBlock(t, 2, 1, 5)}
		file := bytes.NewReader(archiveOf(t, "arena", keyOf("arena"), lost, blocks...))
		got, err := cloud.Import(t.Context(), store, file)
		if err != nil || got != (cloud.Imported{Gateway: "arena", Blocks: 3, Samples: 45, Lost: 1}) {
			t.Fatalf("%v %+v", err, got)
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got, err = cloud.Import(t.Context(), store, file)
		if err != nil || got != (cloud.Imported{Gateway: "arena", Repeats: 3, Lost: 1}) {
			t.Errorf("again: %v %+v, want repeats only", err, got)
		}
		// The same numbers with something else in them are kept aside.
		other := madeBlock(t, 1, 1, 30)
		other.Data = append(bytes.Clone(other.Data), 0)
		other.CRC = other.Sum()
		got, err = cloud.Import(t.Context(), store, bytes.NewReader(archiveOf(t, "arena", keyOf("arena"), nil, other)))
		if err != nil || got.KeptAside != 1 || got.Reason == "" || got.Blocks != 0 {
			t.Errorf("other data: %v %+v, want it kept aside", err, got)
		}
		if n := samplesOf(t, store); n != 45 {
			t.Errorf("%d samples, want 45", n)
		}
		stored, err := store.Stored(t.Context(), "arena", []touchline.Epoch{{1}})
		if err != nil || len(stored) != 1 || stored[0].Ranges.Count() != 40 {
			t.Errorf("the gateway's next welcome will say %+v, %v: want 40 samples", stored, err)
		}
	}, "arena")
}

// TestImport_TakesNothingOfWhatDoesNotHold: not even the parts before.
func TestImport_TakesNothingOfWhatDoesNotHold(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		addKey(t, store, "arena")
		block := madeBlock(t, 1, 1, 30)
		good := archiveOf(t, "arena", keyOf("arena"), nil, block)
		cut := bytes.Clone(good[:len(good)-1])
		changed := bytes.Clone(good)
		changed[len(changed)-70] ^= 1 // in the summary, behind all blocks
		for name, tc := range map[string]struct {
			data []byte
			want string
		}{
			"cut":             {cut, "cut off"},
			"changed":         {changed, "does not hold"},
			"another's key":   {archiveOf(t, "arena", keyOf("gym"), nil, block), "touchline-cloud gateway key arena ed25519:"},
			"unknown gateway": {archiveOf(t, "gym", keyOf("arena"), nil, block), "not registered"},
			"no archive":      {[]byte("hello"), "does not"},
		} {
			if _, err := cloud.Import(t.Context(), store, bytes.NewReader(tc.data)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v, want an error with %q", name, err, tc.want)
			}
		}
		if n := samplesOf(t, store); n != 0 {
			t.Errorf("%d samples were recorded", n)
		}
	}, "arena", "gym")
}

// excerpts returns an archive in the pieces in which a gateway sends it.
func excerpts(t testing.TB, data []byte) (list [][]byte) {
	t.Helper()
	r, err := archive.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for {
		seg, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if seg.Kind != archive.End {
			list = append(list, r.Excerpt())
		}
	}
}

func (n *node) post(gateway string, excerpt []byte) (int, string) {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodPost, "http://"+n.addr+wire.ArchivePath, bytes.NewReader(excerpt))
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header = header(gateway)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestArchives_AnotherGatewayCarries: what the gym brings of the arena is the
// arena's, is there once, and is not sent again when the arena is back.
func TestArchives_AnotherGatewayCarries(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	eachStore(t, func(t *testing.T, store cloud.Store) {
		defer http.DefaultClient.CloseIdleConnections()
		addKey(t, store, "arena")
		n := start(t, options(), store)
		blocks := []wire.Block{madeBlock(t, 1, 1, 30), madeBlock(t, 1, 31, 10)}
		lost := []wire.Lost{{ID: 7, Epoch: touchline.Epoch{1}, Ranges: touchline.Ranges{{First: 41, Last: 50}}, Cause: "max_bytes"}}
		pieces := excerpts(t, archiveOf(t, "arena", keyOf("arena"), lost, blocks...))
		for range 2 { // a carrier that did not hear the answer sends again
			for _, piece := range pieces {
				if status, body := n.post("gym", piece); status != http.StatusOK {
					t.Fatalf("%d %s", status, body)
				}
			}
		}
		if got := samplesOf(t, store); got != 40 {
			t.Errorf("%d samples, want 40", got)
		}
		stored, err := store.Stored(t.Context(), "arena", []touchline.Epoch{{1}})
		if err != nil || len(stored) != 1 || stored[0].Ranges.Count() != 40 {
			t.Errorf("stored of the arena: %+v %v", stored, err)
		}
		if s := n.server.Stats(); s.BlocksStored != 2 || s.Repeats != 2 || s.KeptAside != 0 {
			t.Errorf("%d blocks stored, %d repeats, %d kept aside", s.BlocksStored, s.Repeats, s.KeptAside)
		}
	}, "arena", "gym")
}

func TestArchives_RefusesWhatDoesNotProveItself(t *testing.T) {
	store := newMemory("arena", "gym")
	addKey(t, store, "arena")
	n := start(t, options(), store)
	defer http.DefaultClient.CloseIdleConnections()
	good := excerpts(t, archiveOf(t, "arena", keyOf("arena"), nil, madeBlock(t, 1, 1, 30)))[0]
	changed := bytes.Clone(good)
	changed[len(changed)-100] ^= 1
	forged := excerpts(t, archiveOf(t, "arena", keyOf("gym"), nil, madeBlock(t, 1, 1, 30)))[0]
	for name, tc := range map[string]struct {
		gateway string
		data    []byte
		status  int
	}{
		"changed":       {"gym", changed, http.StatusUnprocessableEntity},
		"cut":           {"gym", good[:100], http.StatusUnprocessableEntity},
		"empty":         {"gym", nil, http.StatusUnprocessableEntity},
		"too large":     {"gym", make([]byte, archive.MaxExcerptBytes+1), http.StatusBadRequest},
		"another's key": {"gym", forged, http.StatusForbidden},
		"no carrier":    {"nobody", good, http.StatusUnauthorized},
	} {
		if status, body := n.post(tc.gateway, tc.data); status != tc.status || !strings.Contains(body, "detail") {
			t.Errorf("%s: %d %s, want %d", name, status, body, tc.status)
		}
	}
	if got := samplesOf(t, store); got != 0 {
		t.Errorf("%d samples were recorded", got)
	}
}

// TestArchives_AnswersAfterTheCommitOnly: a store that fails makes the carrier
// come again, and then all is there once.
func TestArchives_AnswersAfterTheCommitOnly(t *testing.T) {
	store := newMemory("arena", "gym")
	addKey(t, store, "arena")
	var losses, batches atomic.Int32
	first := func(n *atomic.Int32) error {
		if n.Add(1) == 1 {
			return errors.New("no disk")
		}
		return nil
	}
	store.beforeLost = func() error { return first(&losses) }
	store.beforeRecord = func(context.Context, []cloud.Delivery) error { return first(&batches) }
	n := start(t, options(), store)
	defer http.DefaultClient.CloseIdleConnections()
	lost := []wire.Lost{{ID: 7, Epoch: touchline.Epoch{1}, Ranges: touchline.Ranges{{First: 41, Last: 50}}, Cause: "max_bytes"}}
	pieces := excerpts(t, archiveOf(t, "arena", keyOf("arena"), lost, madeBlock(t, 1, 1, 30)))
	if status, body := n.post("gym", pieces[0]); status != http.StatusOK || samplesOf(t, store) != 30 || batches.Load() < 2 {
		t.Errorf("%d %s after %d batches, want 200 when the second is committed", status, body, batches.Load())
	}
	for i, want := range []int{http.StatusServiceUnavailable, http.StatusOK} {
		if status, body := n.post("gym", pieces[1]); status != want {
			t.Errorf("time %d: %d %s, want %d", i+1, status, body, want)
		}
	}
}
