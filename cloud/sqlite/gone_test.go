package sqlite

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"touchline/cloud"
	"touchline/cloud/recordertest"
)

// TestRecord_RefusesAFileThatIsGone takes the file away under the open store:
// nothing is called stored any more, and all goes on when the file is back.
func TestRecord_RefusesAFileThatIsGone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	if err := s.AddGateway(t.Context(), "arena", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	samples := recordertest.Series("belt", 0, 1, 10)
	deliver := func(first uint64) error {
		_, err := s.Record(t.Context(), []cloud.Delivery{recordertest.NewDelivery(t, "arena", [16]byte{1}, first, samples)})
		return err
	}
	if err := deliver(1); err != nil {
		t.Fatal(err)
	}
	path, away := filepath.Join(dir, FileName), filepath.Join(dir, "away")
	if err := os.Rename(path, away); err != nil {
		t.Fatal(err)
	}
	if err := deliver(11); !errors.Is(err, ErrGone) {
		t.Errorf("with the file removed: %v, want ErrGone", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := deliver(11); !errors.Is(err, ErrGone) {
		t.Errorf("with the file replaced: %v, want ErrGone", err)
	}
	if err := os.Rename(away, path); err != nil {
		t.Fatal(err)
	}
	if err := deliver(11); err != nil {
		t.Errorf("with the file back: %v", err)
	}
}
