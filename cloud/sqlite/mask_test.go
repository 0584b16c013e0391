package sqlite

import (
	"strings"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// A store that has all the masks that it takes is not at its end: those of
// seasons ago are revoked, and new ones have room.
func TestAddMask_RevocationMakesRoom(t *testing.T) {
	s := openTest(t)
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write.Exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO mask (number, sensor, metric, min_time, max_time, made, made_by, reason) SELECT i, 'old', '', 0, 1, 0, 't', '' FROM n`, cloud.MaxMasks); err != nil {
		t.Fatal(err)
	}
	m := cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 0, To: 1, By: "t", Keep: []wire.EpochRanges{cloud.WholeEpoch(touchline.NewEpoch())}}
	full := func() {
		t.Helper()
		if _, err := s.AddMask(t.Context(), m); err == nil || !strings.Contains(err.Error(), "revoke") {
			t.Fatalf("one mask more than may be in force: %v, want advice to revoke", err)
		}
	}
	full()
	if _, err := s.AddMask(t.Context(), cloud.Mask{Revokes: 1, By: "t"}); err != nil {
		t.Fatalf("revoke: %v", err)
	}
	if _, err := s.AddMask(t.Context(), m); err != nil {
		t.Fatalf("a mask in the place of the one revoked: %v", err)
	}
	full()
}
