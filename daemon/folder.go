package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"touchline"
	"touchline/archive"
	"touchline/buffer"
	"touchline/identity"
	"touchline/relay"
)

// A Folder is a gateway's data folder, for commands: where a gateway runs on
// it they go through its admin socket, and directly where none does.
type Folder struct {
	config touchline.Config
	client *http.Client // nil: no gateway runs
}

// OpenFolder finds out whether a gateway runs on the folder. It acquires
// nothing that has to be freed but by Close.
func OpenFolder(c touchline.Config) (*Folder, error) {
	f := &Folder{config: c}
	path := filepath.Join(c.Gateway.Data, AdminSocket)
	dial := func() (conn net.Conn, err error) {
		err = inFolder(path, func(short string) error {
			conn, err = net.Dial("unix", short)
			return err
		})
		return conn, err
	}
	conn, err := dial()
	switch {
	case err == nil:
		f.client = &http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return dial() },
		}}
		return f, conn.Close()
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return f, nil
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("gateway.data %s belongs to another user: run this as root, or as the user as which the gateway runs (%w)", c.Gateway.Data, err)
	}
	return nil, fmt.Errorf("ask the gateway of %s: %w", c.Gateway.Data, err)
}

// Close lets go of connections.
func (f *Folder) Close() {
	if f.client != nil {
		f.client.CloseIdleConnections()
	}
}

// A Report is what Check found.
type Report = buffer.Report

// Running says whether a gateway runs on the folder.
func (f *Folder) Running() bool { return f.client != nil }

// Key returns the public half of the gateway's key, which is made where there
// is none.
func (f *Folder) Key() (identity.PublicKey, error) {
	if _, err := os.Stat(f.config.Gateway.Data); err != nil {
		return identity.PublicKey{}, fmt.Errorf("gateway.data: %w", err)
	}
	key, err := identity.LoadOrMake(f.config.Gateway.Data)
	if err != nil {
		return identity.PublicKey{}, err
	}
	return identity.Public(key), nil
}

// Status asks the running gateway how it does.
func (f *Folder) Status(ctx context.Context) (status Status, err error) {
	if !f.Running() {
		return status, fmt.Errorf("no gateway runs on %s", f.config.Gateway.Data)
	}
	err = f.ask(ctx, http.MethodGet, adminStatus, request{}, func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&status)
	})
	return status, err
}

// Credential returns what a handshake with the cloud carries. nonce is one
// that the cloud gave, or empty.
func (f *Folder) Credential(nonce string) (string, error) { return uplinkToken(f.config, nonce) }

// Check says what the buffer holds and what is wrong with it.
func (f *Folder) Check(ctx context.Context) (report Report, err error) {
	if f.Running() {
		err = f.ask(ctx, http.MethodGet, adminCheck, request{}, func(r io.Reader) error {
			return json.NewDecoder(r).Decode(&report)
		})
		return report, err
	}
	r, err := f.read(ctx)
	if err != nil {
		return report, err
	}
	report, err = r.Check(ctx)
	return report, errors.Join(err, r.Close())
}

// read opens the buffer of a gateway that does not run.
func (f *Folder) read(ctx context.Context) (*buffer.Reading, error) {
	r, err := buffer.OpenToRead(ctx, f.config.Gateway.Data)
	var locked *buffer.LockedError
	switch {
	case errors.As(err, &locked):
		return nil, fmt.Errorf("a gateway (process %d) has %s open and does not answer at its admin socket %s: end it first",
			locked.PID, f.config.Gateway.Data, filepath.Join(f.config.Gateway.Data, AdminSocket))
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("gateway.data %s has no buffer: is this the folder of the gateway (--data, --config)? (%w)", f.config.Gateway.Data, err)
	}
	return r, err
}

// Export writes an archive to w, signed by this gateway. What was written is an
// archive only when Export returns nil.
func (f *Folder) Export(ctx context.Context, all bool, w io.Writer) (archive.Summary, error) {
	if f.Running() {
		var s archive.Summary
		path := adminExport
		if all {
			path += "?all=true"
		}
		err := f.ask(ctx, http.MethodPost, path, request{}, func(r io.Reader) (err error) {
			_, s, err = archive.Verify(io.TeeReader(r, w), func(archive.Header) error { return nil })
			return err
		})
		return s, err
	}
	r, err := f.read(ctx)
	if err != nil {
		return archive.Summary{}, err
	}
	s, err := writeArchive(ctx, r, exportOptions{dir: f.config.Gateway.Data, gateway: f.config.Gateway.ID, all: all}, w)
	return s, errors.Join(err, r.Close())
}

// Import takes in another gateway's archive, which this one carries to the
// cloud. Its key must be in buffer.import_keys, or among trusted, which has the
// same form. It is read twice: what does not hold is refused before any of it
// is handed on.
func (f *Folder) Import(ctx context.Context, trusted []string, from io.ReadSeeker) (taken relay.Taken, err error) {
	trust, err := trustOf(append(f.config.Buffer.ImportKeys, trusted...))
	if err != nil {
		return taken, err
	}
	if _, _, err := archive.Verify(from, trust); err != nil {
		return taken, err
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return taken, err
	}
	if f.Running() {
		err = f.ask(ctx, http.MethodPost, adminImport, request{body: from, trusted: trusted}, func(r io.Reader) error {
			return json.NewDecoder(r).Decode(&taken)
		})
		return taken, err
	}
	if _, err := os.Stat(f.config.Gateway.Data); err != nil {
		return taken, fmt.Errorf("gateway.data: %w", err)
	}
	return relay.Take(ctx, relayOptions(f.config), from, trust)
}

// AcceptStore makes id the record store that this gateway delivers to, and
// returns it. "" is the one that the cloud shows now, which only a running
// gateway knows.
func (f *Folder) AcceptStore(ctx context.Context, id string) (string, error) {
	if f.Running() {
		err := f.ask(ctx, http.MethodPost, adminStore+"?id="+url.QueryEscape(id), request{}, func(r io.Reader) error {
			var answer struct {
				Store string `json:"store"`
			}
			err := json.NewDecoder(r).Decode(&answer)
			id = answer.Store
			return err
		})
		return id, err
	}
	if id == "" {
		return "", fmt.Errorf("no gateway runs on %s: name the store's id, or start the gateway first", f.config.Gateway.Data)
	}
	if err := keepStore(f.config.Gateway.Data, id); err != nil {
		return "", fmt.Errorf("keep the id of the record store: %w", err)
	}
	return id, nil
}

type request struct {
	body    io.Reader
	trusted []string
}

// maxAnswerError bounds what is shown of an answer that is an error.
const maxAnswerError = 4 << 10

// ask has the running gateway do something, and hands its answer to take.
func (f *Folder) ask(ctx context.Context, method, path string, q request, take func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, q.body)
	if err != nil {
		return err
	}
	for _, t := range q.trusted {
		req.Header.Add(headerTrust, t)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the running gateway: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerError))
		return errors.Join(fmt.Errorf("the running gateway says: %s", strings.TrimSpace(string(text))), err)
	}
	if err := take(resp.Body); err != nil {
		return fmt.Errorf("ask the running gateway: %w", err)
	}
	return nil
}
