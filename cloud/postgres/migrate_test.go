package postgres

import (
	"testing"
	"time"

	"touchline"
	"touchline/internal/pgtest"
)

// A gateway's sessions are numbered on, and its opening is known, after the
// migration that gave them a table of their own.
func TestMigrate_SessionsGoOn(t *testing.T) {
	all := migrations
	defer func() { migrations = all }()
	before := 0
	for i, m := range all {
		if m.script == schemaSession {
			before = i
		}
	}
	migrations = all[:before]
	url := pgtest.Database(t)
	old := open(t, url)
	epoch, seen := touchline.NewEpoch(), time.Unix(0, 1_780_000_000e9).UTC()
	addGateways(t, old, "north", "south")
	_, err := old.pool.Exec(t.Context(), `UPDATE gateway SET session = 7, session_node = 'a', last_seen = $1, opening = $2 WHERE name = 'north'`,
		seen.UnixNano(), epoch[:])
	if err == nil {
		_, err = old.pool.Exec(t.Context(), `INSERT INTO opening SELECT id, opening, last_seen FROM gateway WHERE name = 'north'`)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	migrations = all
	s := open(t, url)
	defer s.Close()
	var needs string
	if err := s.pool.QueryRow(t.Context(), `SELECT value FROM meta WHERE key = 'needs'`).Scan(&needs); err != nil || needs != all[len(all)-1].since {
		t.Errorf("it says that it needs %q (%v), want %s", needs, err, all[len(all)-1].since)
	}
	gateways, err := s.Gateways(t.Context())
	if err != nil || len(gateways) != 2 || gateways[0].LastSeen == nil || !gateways[0].LastSeen.Equal(seen) || gateways[1].LastSeen != nil {
		t.Fatalf("%+v %v: want north last seen at %s, and south never", gateways, err, seen)
	}
	for gateway, want := range map[string]uint64{"north": 8, "south": 1} {
		if _, session, err := s.NewSession(t.Context(), gateway); err != nil || session != want {
			t.Errorf("session of %s: %d %v, want %d", gateway, session, err, want)
		}
	}
	for _, c := range []struct {
		epoch  touchline.Epoch
		cloned bool
	}{{epoch, false}, {touchline.NewEpoch(), false}, {epoch, true}} {
		if cloned, err := s.Opened(t.Context(), "north", 8, c.epoch); err != nil || cloned != c.cloned {
			t.Errorf("Opened: %t %v, want %t", cloned, err, c.cloned)
		}
	}
}
