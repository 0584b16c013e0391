package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	"touchline/cloud/postgres"
	"touchline/cloud/sqlite"
	"touchline/internal/pgtest"
)

// Names of the record stores.
const (
	sqliteName   = "sqlite"
	postgresName = "postgres"
)

// A cloudNode is touchline-cloud as a process of its own, on a record store of
// its own, with gateways that know their tokens.
type cloudNode struct {
	address string
	roll    roll
	process *process
	pg      *pgtest.Server // nil with SQLite
}

// A roll is the gateways that a node knows: their tokens follow from a secret.
type roll struct {
	Secret string `json:"secret"`
	Count  int    `json:"count"`
}

func (r roll) id(i int) string { return fmt.Sprintf("venue-%05d", i) }

func (r roll) token(i int) string {
	sum := sha256.Sum256([]byte(r.Secret + r.id(i)))
	return hex.EncodeToString(sum[:])
}

// A gatewayAdder is either record store.
type gatewayAdder interface {
	AddGateway(ctx context.Context, id string, tokenHash [32]byte) error
	Close() error
}

// startNode makes a record store with gateways in dir and starts a node on it.
// All settings but addresses, folders and what so many gateways from one machine
// need are the defaults.
func startNode(ctx context.Context, program, dir, store string, gateways int) (n *cloudNode, err error) {
	n = &cloudNode{roll: roll{Secret: filepath.Base(dir) + store, Count: gateways}}
	defer func() {
		if err != nil {
			n.stop()
		}
	}()
	path, err := filepath.Abs(program)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("find program (make build makes it; -cloud names another): %w", err)
	}
	if n.address, err = freeAddress(); err != nil {
		return nil, err
	}
	data, config := filepath.Join(dir, "cloud"), filepath.Join(dir, "cloud.toml")
	settings := fmt.Sprintf("listen = %q\ndata = %q\nmax_gateways = %d\n", n.address, data, max(gateways, 1))
	var adder gatewayAdder
	logger := slog.New(slog.DiscardHandler)
	switch store {
	case sqliteName:
		adder, err = sqlite.Open(ctx, data, logger)
	case postgresName:
		if n.pg, err = pgtest.New(dir); err != nil {
			return nil, err
		}
		var at string
		if at, err = n.pg.Create(ctx, "touchline"); err != nil {
			return nil, err
		}
		password := filepath.Join(dir, "password")
		if err := os.WriteFile(password, []byte(pgtest.Password+"\n"), 0o600); err != nil {
			return nil, err
		}
		settings += fmt.Sprintf("store = %q\nstore_password_file = %q\n", withoutPassword(at), password)
		adder, err = postgres.Open(ctx, postgres.Options{URL: at, Node: "bench"}, logger)
	}
	if err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	settings += fmt.Sprintf("[limits]\nhandshakes = 5000\naddress_connections = %d\n", gateways+100)
	if err := errors.Join(n.addGateways(ctx, adder), os.WriteFile(config, []byte(settings), 0o600)); err != nil {
		return nil, err
	}
	if n.process, err = startProcess(dir, "touchline-cloud-"+store, path, "run", "--config", config); err != nil {
		return nil, err
	}
	return n, until(ctx, n.process, "did not listen", func() error { return listening(n.address) })
}

func (n *cloudNode) addGateways(ctx context.Context, adder gatewayAdder) error {
	for i := range n.roll.Count {
		if err := adder.AddGateway(ctx, n.roll.id(i), sha256.Sum256([]byte(n.roll.token(i)))); err != nil {
			return errors.Join(fmt.Errorf("add gateway: %w", err), adder.Close())
		}
	}
	return adder.Close()
}

// withoutPassword returns a URL of PostgreSQL as settings may have it.
func withoutPassword(at string) string {
	u, err := url.Parse(at)
	if err != nil {
		panic("BUG: " + err.Error()) // pgtest made it
	}
	u.User = url.User(u.User.Username())
	return u.String()
}

func (n *cloudNode) metrics(ctx context.Context) (metrics, error) {
	return scrape(ctx, "http://"+n.address+"/metrics")
}

// stop ends the node and its PostgreSQL. It may be called twice.
func (n *cloudNode) stop() {
	n.process.stop()
	if n.pg != nil {
		if err := n.pg.Close(); err != nil {
			say("stop PostgreSQL: %v", err)
		}
		n.pg = nil
	}
}
