package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"touchline/cloud"
)

const (
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 10 * time.Second
	// statementTimeout bounds one statement. The longest copies a batch: 512
	// blocks of 192 KiB are 96 MiB, 3 s on a disk that writes 30 MB/s.
	statementTimeout = 30 * time.Second
	// lockTimeout bounds the wait for another transaction: shorter, so that
	// the error says what it was.
	lockTimeout = 20 * time.Second
	// idleTimeout frees the locks of a node that stands still in the middle
	// of a transaction: its cursors are another node's then.
	idleTimeout = 20 * time.Second
	// minServer is PostgreSQL 15. What is used beyond 14, which brought
	// multiranges, is its rule for defaults of the schema public.
	minServer = 150000
)

// poolConfig returns the settings of the connections. Everything that holds
// per connection is in it, so that a reconnect can't lose it.
func poolConfig(opts Options) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(opts.URL)
	if err != nil {
		return nil, err // which leaves the password out
	}
	config.MaxConns = maxConns
	config.ConnConfig.ConnectTimeout = connectTimeout
	for name, value := range map[string]string{
		"application_name":                    "touchline-cloud",
		"search_path":                         schemaName,
		"timezone":                            "UTC",
		"statement_timeout":                   millis(statementTimeout),
		"lock_timeout":                        millis(lockTimeout),
		"idle_in_transaction_session_timeout": millis(idleTimeout),
		// One that half-closed its connection is found by the server.
		"tcp_keepalives_idle":     "30",
		"tcp_keepalives_interval": "10",
		"tcp_keepalives_count":    "3",
	} {
		config.ConnConfig.RuntimeParams[name] = value
	}
	if opts.PasswordFile != "" {
		config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			var err error
			c.Password, err = readPassword(opts.PasswordFile)
			return err
		}
	}
	return config, nil
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// readPassword returns the first line of a file.
func readPassword(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", errors.Join(fmt.Errorf("read password: the first line of %s is empty", name), err)
	}
	return line, nil
}

// verify says whether the server has what acknowledgements rest on. It looks
// at each connection: settings are reloaded, and servers replaced, while a
// node runs.
func (s *Store) verify(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var fsync, commit, system string
	var standby bool
	err := conn.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_setting('fsync'), current_setting('synchronous_commit'),
			pg_is_in_recovery(), system_identifier::text FROM pg_control_system()`).Scan(&version, &fsync, &commit, &standby, &system)
	if err != nil {
		return fmt.Errorf("look at the server: %w", err)
	}
	switch {
	case version < minServer:
		return fmt.Errorf("PostgreSQL is of version %d: 15 or newer is needed", version/10000)
	case standby:
		return errors.New("this server is a standby, which can't record: name the primary, or all servers with target_session_attrs=read-write")
	case s.system != "" && s.system != system:
		return errors.New("this is another database cluster than the one that was opened: restart touchline-cloud where that is intended")
	case s.opts.AllowUnsynced:
		return nil
	case fsync != "on":
		return fmt.Errorf("PostgreSQL has fsync = %s: a power cut would lose acknowledged samples; set it to on, or store_unsynced = true where that may be", fsync)
	case commit != "on" && commit != "remote_apply":
		return fmt.Errorf("PostgreSQL has synchronous_commit = %s for this user: a power cut would lose acknowledged samples; "+
			"set it to on, or store_unsynced = true where that may be", commit)
	}
	return nil
}

// unavailable wraps what is said of the server, the network or other
// transactions, and not of what was recorded.
func unavailable(err error) error {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		if errors.Is(err, errNotRegistered) || errors.Is(err, errBounds) {
			return err
		}
		return fmt.Errorf("%w: %w", cloud.ErrUnavailable, err) // no answer at all
	}
	// Classes of https://www.postgresql.org/docs/15/errcodes-appendix.html:
	// data exceptions and broken constraints may be a block's doing. All
	// others are not: rights, resources, locks, a server that stops, a schema
	// that is gone, disks and corruption.
	switch said.Code[:2] {
	case "22", "23":
		return err
	}
	return fmt.Errorf("%w: %w", cloud.ErrUnavailable, err)
}

// Codes that are branched on.
const (
	codeSerialization  = "40001"
	codeDeadlock       = "40P01"
	codeLockNotFree    = "55P03"
	codeUndefinedTable = "42P01"
)

func isCode(err error, codes ...string) bool {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return false
	}
	for _, code := range codes {
		if said.Code == code {
			return true
		}
	}
	return false
}
