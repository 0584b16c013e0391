package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"touchline/cloud/postgres"
	"touchline/internal/pgtest"
)

// An engine is what a cloud records with.
type engine struct {
	name            string
	postgres, queue bool
}

var engines = []engine{
	{"SQLite", false, false}, {"PostgreSQL", true, false}, {"SQLite behind the queue", false, true}, {"PostgreSQL behind the queue", true, true},
}

// newSiteOn is newSite with an engine; more is laid into the cloud's
// configuration, below [queue] where there is one. server is nil for SQLite.
func newSiteOn(t *testing.T, e engine, more string) (s *site, server *pgtest.Server) {
	t.Helper()
	s = newSite(t, "")
	conf := filepath.Dir(s.cloudConfig)
	text := fmt.Sprintf("listen = \"127.0.0.1:%d\"\ndata = %q\n", s.cloudPort, s.cloudData)
	if e.postgres {
		server = pgtest.Start(t, "")
		s.storeURL = server.Database(t)
		writeFile(t, filepath.Join(conf, "password"), pgtest.Password+"\n")
		text += fmt.Sprintf("store = %q\nstore_password_file = %q\n", withoutPassword(s.storeURL), filepath.Join(conf, "password"))
	}
	if e.queue {
		text += "[queue]\nnats = \"embedded\"\n" + more
	}
	writeFile(t, s.cloudConfig, text)
	if e.postgres {
		token, stderr, status := run(t, s.cloudProgram, "gateway", "add", s.venue, "--config", s.cloudConfig)
		if status != 0 {
			t.Fatalf("gateway add: status %d, %s", status, stderr)
		}
		writeFile(t, filepath.Join(conf, "token"), token)
	}
	return s, server
}

// auditPostgres is auditFile for a cloud on PostgreSQL.
func (s *site) auditPostgres(v *verdict) {
	s.t.Helper()
	ctx := s.t.Context()
	store, err := postgres.Open(ctx, postgres.Options{URL: s.storeURL, Node: "audit"}, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	defer store.Close()
	audited, err := store.Audit(ctx)
	if err != nil {
		v.find("%v", err)
	}
	if audited.KeptAside > 0 {
		v.find("%d blocks are kept aside", audited.KeptAside)
	}
	if audited.Samples != v.stored {
		v.find("the store has %d samples, the query API gave %d", audited.Samples, v.stored)
	}
	conn, err := pgx.Connect(ctx, s.storeURL)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT encode(epoch, 'hex'), ranges::text FROM touchline.cursor`)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var epoch, stored string
		if err := rows.Scan(&epoch, &stored); err != nil {
			s.t.Fatal(err)
		}
		v.epochs++
		if !strings.HasPrefix(stored, "{[1,") || strings.Count(stored, "[") != 1 {
			v.find("epoch %s has the numbers %s", epoch, stored)
		}
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
}
