package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"touchline/cloud"
	"touchline/cloud/postgres"
	"touchline/cloud/rollup"
	"touchline/cloud/sqlite"
	"touchline/identity"
)

// A recordStore is either record store as the commands need it: what the
// server asks of it, and the management of gateways and keys.
type recordStore interface {
	cloud.Store
	cloud.Masks
	rollup.Store
	AddGateway(ctx context.Context, id string, tokenHash [32]byte) error
	AddGatewayKey(ctx context.Context, gateway string, key identity.PublicKey) error
	RemoveGatewayKey(ctx context.Context, gateway, thumbprint string) error
	PublicKeysOf(ctx context.Context, gateway string) ([]string, error)
	RevokeGateway(ctx context.Context, gateway string) error
	AddClaim(ctx context.Context, c cloud.Claim) error
	AddAPIKey(ctx context.Context, k cloud.APIKey) error
	APIKeys(ctx context.Context) ([]cloud.APIKey, error)
	RevokeAPIKey(ctx context.Context, name string) error
	Close() error
}

// A tender is a record store that must be looked after while the cloud runs.
type tender interface {
	Run(ctx context.Context) error
}

// openStore opens the record store that the settings name.
func openStore(ctx context.Context, c *cloud.Config, logger *slog.Logger) (recordStore, error) {
	if c.Store == "" {
		store, err := sqlite.Open(ctx, c.Data, logger)
		if err != nil {
			return nil, fmt.Errorf("data %s: %w", c.Data, err)
		}
		return store, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read this machine's name: %w", err)
	}
	store, err := postgres.Open(ctx, postgres.Options{
		URL: c.Store, PasswordFile: c.StorePasswordFile, Node: host + " " + c.Listen,
		KeepDays: c.StoreKeepDays, AllowUnsynced: c.StoreUnsynced,
	}, logger)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return store, nil
}

// newRoller returns what keeps rows of seconds and minutes in a store.
func newRoller(c *cloud.Config, store recordStore, logger *slog.Logger) (*rollup.Roller, error) {
	const day = 24 * time.Hour
	return rollup.New(rollup.Options{
		Enabled:    c.Rollups.Enabled,
		SecondRows: time.Duration(c.Rollups.SecondKeepDays) * day,
		MinuteRows: time.Duration(c.Rollups.MinuteKeepDays) * day,
		Limits:     rollup.DefaultLimits,
	}, store, logger.With("component", "rollup"))
}

// withStore opens the record store for one command.
func (s *settings) withStore(cmd *cobra.Command, do func(recordStore) error) error {
	c, err := s.load()
	if err != nil {
		return err
	}
	store, err := openStore(cmd.Context(), &c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}
