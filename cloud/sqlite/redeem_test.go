package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"touchline/credential"
)

func used(n int, until time.Time) credential.Handshake {
	return credential.Handshake{Gateway: "north", Mark: [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}, Until: until}
}

func usedRows(t testing.TB, s *Store) (n int) {
	t.Helper()
	if err := s.read.QueryRow(`SELECT count(*) FROM used`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A store of the version before is migrated as it is opened, and has a secret
// from then on, the same for every process.
func TestOpen_MigratesAStoreThatRememberedNoTokens(t *testing.T) {
	dir := t.TempDir()
	whole := migrations
	migrations = whole[:4]
	_, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	migrations = whole
	if err == nil || !strings.Contains(err.Error(), "secret") { // after it has made a file of the version before
		t.Fatalf("without the fifth: %v", err)
	}
	old := open(t, dir)
	defer old.Close()
	if version := pragmaOf(t, old, "user_version"); version != fmt.Sprint(len(whole)) {
		t.Fatalf("the schema is %s", version)
	}
	other := open(t, dir)
	defer other.Close()
	if a, b := old.NonceSecret(), other.NonceSecret(); len(a) != credential.MinNonceSecret || !bytes.Equal(a, b) || bytes.Equal(a, make([]byte, len(a))) {
		t.Errorf("the secrets are % x and % x", a, b)
	}
	if info, err := os.Stat(filepath.Join(dir, FileName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("who can read the secret: %v %v", info.Mode(), err)
	}
}

func pragmaOf(t *testing.T, s *Store, name string) (value string) {
	t.Helper()
	withWriter(t, s, func(conn *sqlite3.SQLiteConn) {
		var err error
		if value, err = pragma(conn, name); err != nil {
			t.Error(err)
		}
	})
	return value
}

// Those that come while a transaction runs are in the next one together.
func TestRedeem_ManyAtOnceShareACommit(t *testing.T) {
	s := openTest(t)
	const count = 200
	commits := 0
	withWriter(t, s, func(conn *sqlite3.SQLiteConn) {
		conn.RegisterCommitHook(func() int { commits++; return 0 })
	})
	s.redemptions.turn <- struct{}{} // a transaction runs
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			if err := s.Redeem(t.Context(), used(i, time.Now().Add(time.Minute))); err != nil {
				t.Error(err)
			}
		})
	}
	waitUntil(t, func() bool {
		s.redemptions.mu.Lock()
		defer s.redemptions.mu.Unlock()
		return len(s.redemptions.waiting) == count
	})
	<-s.redemptions.turn
	wg.Wait()
	withWriter(t, s, func(conn *sqlite3.SQLiteConn) { conn.RegisterCommitHook(nil) })
	if commits != 1 || usedRows(t, s) != count {
		t.Errorf("%d tokens are used up by %d commits, want %d by one", usedRows(t, s), commits, count)
	}
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// Who goes away while others wait takes nothing with him, and leaves nothing.
func TestRedeem_WhoGoesAwayEndsNobodyElses(t *testing.T) {
	s := openTest(t)
	s.redemptions.turn <- struct{}{}
	gone, leave := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- s.Redeem(gone, used(1, time.Now().Add(time.Minute))) }()
	waitUntil(t, func() bool {
		s.redemptions.mu.Lock()
		defer s.redemptions.mu.Unlock()
		return len(s.redemptions.waiting) == 1
	})
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("who went away: %v", err)
	}
	go func() { ended <- s.Redeem(t.Context(), used(2, time.Now().Add(time.Minute))) }()
	waitUntil(t, func() bool {
		s.redemptions.mu.Lock()
		defer s.redemptions.mu.Unlock()
		return len(s.redemptions.waiting) == 1
	})
	<-s.redemptions.turn
	if err := <-ended; err != nil {
		t.Errorf("the other: %v", err)
	}
	if n := usedRows(t, s); n != 1 {
		t.Errorf("%d tokens are used up", n)
	}
}

// A transaction is of all who wait, so it is not ended by who began it.
func TestRedeem_WhoLeadsMayGoAway(t *testing.T) {
	s := openTest(t)
	gone, leave := context.WithCancel(t.Context())
	leave()
	one := s.redemptions.add(used(1, time.Now().Add(time.Minute)))
	s.redemptions.turn <- struct{}{}
	s.redeemWaiting(gone)
	<-s.redemptions.turn
	if <-one.done; one.err != nil {
		t.Errorf("who waited: %v", one.err)
	}
}

// What does not commit lets nobody in, and the next one is not in its way.
func TestRedeem_ACommitThatFailsLetsNobodyIn(t *testing.T) {
	s := openTest(t)
	h := used(1, time.Now().Add(time.Minute))
	testStore{s}.FailNextCommit(t)
	if err := s.Redeem(t.Context(), h); err == nil || errors.Is(err, credential.ErrReplayed) {
		t.Fatalf("a commit that failed: %v", err)
	}
	if err := s.Redeem(t.Context(), h); err != nil {
		t.Errorf("after it: %v", err)
	}
	if err := s.Redeem(t.Context(), h); !errors.Is(err, credential.ErrReplayed) {
		t.Errorf("again: %v", err)
	}
}

// What would be refused anyway is forgotten, some time later, and nothing else is.
func TestRedeem_ForgetsWhatIsOver(t *testing.T) {
	s := openTest(t)
	now := time.Now()
	const over, lately = 300, 50
	err := s.change(t.Context(), func(tx *sql.Tx) error { // for Redeem might sweep meanwhile
		for i := range over + lately {
			h := used(i, now.Add(-2*usedSlack))
			if i >= over {
				h.Until = now // by another's clock it may not be over
			}
			if _, err := tx.Exec(`INSERT INTO used (until, mark) VALUES (?, ?)`, h.Until.UnixNano(), h.Mark[:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	last := used(over+lately, now.Add(time.Minute))
	if err := s.Redeem(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if n := usedRows(t, s); n != lately+1 {
		t.Errorf("%d rows are left, want %d", n, lately+1)
	}
	if err := s.Redeem(t.Context(), used(over, now)); !errors.Is(err, credential.ErrReplayed) {
		t.Errorf("one that ended lately: %v", err)
	}
}

// BenchmarkRedeem is a storm: 64 handshakes at a time.
func BenchmarkRedeem(b *testing.B) {
	s := openTest(b)
	until := time.Now().Add(time.Minute)
	b.SetParallelism(32)
	var mu sync.Mutex
	n := 0
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			h := used(n, until)
			mu.Unlock()
			if err := s.Redeem(b.Context(), h); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkNewSession is what a handshake costs beside it.
func BenchmarkNewSession(b *testing.B) {
	s := openTest(b)
	if err := s.AddGateway(b.Context(), "north", [32]byte{1}); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := s.NewSession(b.Context(), "north"); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
