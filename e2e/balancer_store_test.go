package e2e

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"touchline/cloud/postgres"
	"touchline/cloud/sqlite"
	"touchline/internal/pgtest"
)

// A clusterStore is the record store that all nodes of a cluster have.
type clusterStore struct {
	settings string // in cloud.toml
	open     func(context.Context) (gatewayAdder, error)
	audit    func(*verdict) // while no node has it open
}

type gatewayAdder interface {
	AddGateway(ctx context.Context, id string, tokenHash [32]byte) error
	io.Closer
}

// onSQLite is one file that all nodes of this machine open.
func onSQLite(t *testing.T) clusterStore {
	data := t.TempDir()
	return clusterStore{
		settings: fmt.Sprintf("data = %q", data),
		open: func(ctx context.Context) (gatewayAdder, error) {
			return sqlite.Open(ctx, data, slog.New(slog.DiscardHandler))
		},
		audit: (&site{t: t, cloudData: data}).auditFile,
	}
}

// onPostgres is a database of a server that the test starts.
func onPostgres(t *testing.T) clusterStore { return onDatabase(t, pgtest.Start(t, "").Database(t)) }

// onDatabase is an empty database, by its URL.
func onDatabase(t *testing.T, url string) clusterStore {
	conf := filepath.Join(t.TempDir(), "password")
	writeFile(t, conf, pgtest.Password+"\n")
	return clusterStore{
		settings: fmt.Sprintf("store = %q\nstore_password_file = %q", withoutPassword(url), conf),
		open: func(ctx context.Context) (gatewayAdder, error) {
			return postgres.Open(ctx, postgres.Options{URL: url}, slog.New(slog.DiscardHandler))
		},
		audit: func(v *verdict) { t.Helper(); auditPostgres(t, url, v) },
	}
}

// auditPostgres adds to v what is wrong with a database that no node has open.
func auditPostgres(t *testing.T, url string, v *verdict) {
	t.Helper()
	store, err := postgres.Open(t.Context(), postgres.Options{URL: url}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	audited, err := store.Audit(t.Context())
	if err != nil {
		v.find("%v", err)
	}
	v.epochs = int(audited.Epochs)
	if audited.KeptAside > 0 {
		v.find("%d blocks are kept aside", audited.KeptAside)
	}
	if audited.Samples != v.stored {
		v.find("the database has %d samples, the query API gave %d", audited.Samples, v.stored)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	// The audit has shown that the cursors have what the blocks have.
	pgtest.Exec(t, url, `DO $$ BEGIN
		IF EXISTS (SELECT FROM touchline.cursor WHERE ranges <> int8multirange(int8range(1, upper(ranges)))) THEN
			RAISE EXCEPTION 'the numbers of an epoch have a hole';
		END IF; END $$`)
}

// TestBalancer_NodesOnPostgresLoseNothing is the way of HAProxy's test where
// the nodes have a database in place of a file.
func TestBalancer_NodesOnPostgresLoseNothing(t *testing.T) {
	if !long() {
		t.Skip("TOUCHLINE_TEST_LONG is not set: PostgreSQL under nodes is tested by TestPostgres_…, nodes behind HAProxy by TestBalancer_HAProxy…")
	}
	t.Parallel()
	c := newCluster(t, onPostgres(t), 4, drainsBehindHAProxy)
	c.moveBehindHAProxy()
}
