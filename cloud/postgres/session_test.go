package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/internal/pgtest"
)

// A node that stands still in the middle of a batch keeps what it has locked
// until the server ends it. Its gateway gets a session elsewhere meanwhile, and
// is told what is stored.
func TestNewSession_WaitsForNoBatchOfAnotherNode(t *testing.T) {
	url := pgtest.Database(t)
	still, moved := openWith(t, Options{URL: url, Node: "still"}), openWith(t, Options{URL: url, Node: "moved"})
	defer still.Close()
	defer moved.Close()
	addGateways(t, still, "north")
	epoch := touchline.NewEpoch()
	first := recordertest.NewDelivery(t, "north", epoch, 1, recordertest.Series("belt", 0, 1, 10))
	record(t, still, first)
	err := still.change(t.Context(), func(tx pgx.Tx) error {
		more := []cloud.Delivery{recordertest.NewDelivery(t, "north", epoch, 11, recordertest.Series("belt", 10, 1, 10))}
		r := &recording{tx: tx, store: still, batch: more}
		if _, err := r.record(t.Context()); err != nil {
			return err
		}
		_, session, err := moved.NewSession(t.Context(), "north")
		if err != nil || session != 1 {
			t.Errorf("session %d, %v, while a batch of the gateway is not committed", session, err)
		}
		if _, err := moved.Opened(t.Context(), "north", session, epoch); err != nil {
			t.Error(err)
		}
		stored, err := moved.Stored(t.Context(), "north", []touchline.Epoch{epoch})
		if err != nil || len(stored) != 1 || stored[0].Ranges.Count() != 10 {
			t.Errorf("stored is %v, %v: want what is committed", stored, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
