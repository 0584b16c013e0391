package postgres

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/internal/pgtest"
)

func TestOpen_NodesThatComeAtOnceMakeOneSchema(t *testing.T) {
	url := pgtest.Database(t)
	var group errgroup.Group
	ids := make([]string, 6)
	for i := range ids {
		group.Go(func() error {
			s, err := Open(t.Context(), Options{URL: url}, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			ids[i] = s.ID()
			return errors.Join(s.makeParts(t.Context()), s.Close())
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("the nodes say that the store is %q", ids)
		}
	}
}

// TestOpen_ANewerSchemaNamesTheVersionThatReadsIt, where the store says it, and
// leaves the store alone.
func TestOpen_ANewerSchemaNamesTheVersionThatReadsIt(t *testing.T) {
	url := pgtest.Database(t)
	if err := open(t, url).Close(); err != nil {
		t.Fatal(err)
	}
	for needs, want := range map[string]string{"7.12.3": "touchline-cloud 7.12.3 or newer reads", "": "a newer touchline-cloud reads", "a\nb": "a newer touchline-cloud reads"} {
		pgtest.Exec(t, url, `UPDATE touchline.meta SET value = '99' WHERE key = 'schema'`)
		pgtest.Exec(t, url, `UPDATE touchline.meta SET value = '`+needs+`' WHERE key = 'needs'`)
		if needs == "" {
			pgtest.Exec(t, url, `DELETE FROM touchline.meta WHERE key = 'needs'`)
		}
		s, err := Open(t.Context(), Options{URL: url}, slog.New(slog.DiscardHandler))
		var newer *cloud.NewerStoreError
		if !errors.As(err, &newer) || newer.Schema != 99 || newer.Known != len(migrations) || !strings.Contains(err.Error(), want) {
			t.Errorf("Open = %v, %v: want a refusal with %q", s, err, want)
		}
		if needs == "" {
			pgtest.Exec(t, url, `INSERT INTO touchline.meta VALUES ('needs', '')`)
		}
	}
	pgtest.Exec(t, url, fmt.Sprintf(`UPDATE touchline.meta SET value = '%d' WHERE key = 'schema'`, len(migrations)))
	if err := open(t, url).Close(); err != nil {
		t.Errorf("the version that reads it: %v", err)
	}
}

// What would let a power cut take away what was called stored.
func TestOpen_RefusesAServerThatDoesNotSync(t *testing.T) {
	server := pgtest.Shared(t)
	url := server.Database(t)
	for name, setting := range map[string]struct{ set, reset, says string }{
		"fsync":              {`ALTER SYSTEM SET fsync = off`, `ALTER SYSTEM RESET fsync`, "fsync = off"},
		"synchronous_commit": {`ALTER ROLE postgres SET synchronous_commit = off`, `ALTER ROLE postgres RESET synchronous_commit`, "synchronous_commit = off"},
		"only written":       {`ALTER ROLE postgres SET synchronous_commit = remote_write`, `ALTER ROLE postgres RESET synchronous_commit`, "synchronous_commit = remote_write"},
	} {
		t.Run(name, func(t *testing.T) {
			// A reload reaches a new connection when the postmaster has read it.
			reload := func(statement string) {
				pgtest.Exec(t, url, statement)
				pgtest.Exec(t, url, `SELECT pg_reload_conf()`)
			}
			reload(setting.set)
			defer reload(setting.reset)
			var err error
			for range 1000 {
				var s *Store
				if s, err = Open(t.Context(), Options{URL: url}, slog.New(slog.DiscardHandler)); err != nil {
					break
				}
				_ = s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), setting.says) || !strings.Contains(err.Error(), "store_unsynced") {
				t.Fatalf("Open: %v\nwant a refusal that says %q and what to do", err, setting.says)
			}
			if err := openWith(t, Options{URL: url, AllowUnsynced: true}).Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOpen_TakesThePasswordFromAFileAtEachConnect(t *testing.T) {
	url := strings.Replace(pgtest.Database(t), ":"+pgtest.Password+"@", "@", 1)
	file := filepath.Join(t.TempDir(), "password")
	write := func(password string) {
		if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, wrong := range []string{"", "secret-but-wrong\n"} {
		write(wrong)
		_, err := Open(t.Context(), Options{URL: url, PasswordFile: file}, slog.New(slog.DiscardHandler))
		if err == nil || strings.Contains(err.Error(), "secret-but-wrong") {
			t.Fatalf("Open with the password %q: %v, want an error that does not show it", wrong, err)
		}
	}
	write(pgtest.Password + "\n")
	s := openWith(t, Options{URL: url, PasswordFile: file})
	defer s.Close()
	write("another one\n")
	s.pool.Reset()
	if _, err := s.Gateways(t.Context()); err == nil {
		t.Fatal("a new connection did not read the file again")
	}
	write(pgtest.Password)
	if _, err := s.Gateways(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Transaction ids compare within one cluster only: in another one that a dump
// came to, those of its rows are in the future.
func TestRestore_IntoAnotherClusterShowsAllThatWasStored(t *testing.T) {
	from := pgtest.Shared(t)
	url := from.Database(t)
	s := open(t, url)
	defer s.Close()
	addGateways(t, s, "north")
	unset := touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockUnset, Offset: 5e9}
	right := touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockSynchronised, Offset: 1_780_000_000e9}
	epoch := touchline.NewEpoch()
	first := recordertest.Clocked(t, recordertest.NewDelivery(t, "north", epoch, 1, recordertest.Stamped(20e9, 50e9, 1e9, 50)), unset)
	record(t, s, first)
	if err := s.Clock(t.Context(), "north", 0, right); err != nil { // a place is out of force
		t.Fatal(err)
	}
	want := fmt.Sprint(query(t, s, allSamples))

	to := pgtest.Start(t, "")
	restored := to.Database(t)
	dump := filepath.Join(t.TempDir(), "dump")
	run(t, from.Program("pg_dump"), "--format", "custom", "--schema", "touchline", "--file", dump, url)
	run(t, to.Program("pg_restore"), "--exit-on-error", "--dbname", restored, dump)
	// As it is when the cluster of the dump was older: the new one counts from 1.
	pgtest.Exec(t, restored, `UPDATE touchline.place SET xid = '4000000000', until = CASE WHEN until IS NOT NULL THEN xid8 '4000000001' END;
		UPDATE touchline.retired SET until = '4000000001'`)
	r := open(t, restored)
	defer r.Close()
	if got := fmt.Sprint(query(t, r, allSamples)); got != want {
		t.Fatalf("the restored store has\n%.300s\nwant\n%.300s", got, want)
	}
	if r.ID() != s.ID() || r.era != s.era+1 {
		t.Errorf("the restored store is %s in era %d, after %s in era %d", r.ID(), r.era, s.ID(), s.era)
	}
	if outcome := record(t, r, first); !outcome[0].Repeat {
		t.Errorf("a block that was stored is %+v there", outcome[0])
	}
	record(t, r, recordertest.NewDelivery(t, "north", epoch, 201, recordertest.Series("belt", 0, 10, 5)))
	right.Offset += 7e9
	if err := r.Clock(t.Context(), "north", 0, right); err != nil {
		t.Fatal(err)
	}
	if got := len(query(t, r, allSamples)); got != 105 {
		t.Errorf("the restored store has %d samples, want 105", got)
	}
	audit(t, r)
}

// Whoever owns the database needs no more rights: nodes are no superusers.
func TestOpen_AsAnOrdinaryRole(t *testing.T) {
	server := pgtest.Shared(t)
	url := server.Database(t)
	role := fmt.Sprintf("plain_%d", time.Now().UnixNano()) // of the server, which other tests share
	pgtest.Exec(t, url, `CREATE ROLE `+role+` LOGIN PASSWORD '`+pgtest.Password+`'`)
	pgtest.Exec(t, url, `DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' OWNER TO `+role+`'; END $$`)
	s := openWith(t, Options{URL: strings.Replace(url, "postgres:"+pgtest.Password, role+":"+pgtest.Password, 1), KeepDays: 1})
	defer s.Close()
	addGateways(t, s, "north")
	work := blocks(t, "north", 3)
	record(t, s, work...)
	age(t, s, 2)
	if err := s.tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	audit(t, s)
}
