package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// AdminSocket is the name of the socket in the data folder over which the
// command line talks to a running gateway.
const AdminSocket = "admin.sock"

// Paths of the admin socket. They are spoken between one version's daemon and
// its own command line, and may change with any version.
const (
	adminCheck  = "/check"
	adminExport = "/export"
	adminImport = "/import"
	adminStore  = "/accept-store"
	adminStatus = "/status"
	adminKey    = "/key/roll"
)

// maxAdminRequests bounds commands that run at a time; each reads the whole
// buffer.
const maxAdminRequests = 2

// admin serves the admin socket. Who may use it is who may read the data
// anyway: the gateway's own user, and root.
type admin struct {
	listener *net.UnixListener
	path     string
	slots    chan struct{}
	log      *slog.Logger
	d        *Daemon
	closed   sync.Once
}

// listenAdmin takes the socket. The buffer's lock is held, so a socket that is
// there is a dead one. A gateway without it runs as well as with it, so what
// goes wrong is logged and no error: a file system may have no sockets, or no
// room for one.
func (d *Daemon) listenAdmin(logger *slog.Logger) {
	path := filepath.Join(d.config.Gateway.Data, AdminSocket)
	log := logger.With("component", "admin")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("the admin socket can't be replaced: `touchline buffer` works on a stopped gateway only", "error", err)
		return
	}
	var listener *net.UnixListener
	err := inFolder(path, func(short string) (err error) {
		listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		if err != nil {
			return err
		}
		listener.SetUnlinkOnClose(false) // by its short name, which may be another's by then
		return os.Chmod(short, 0o600)
	})
	if err != nil {
		if listener != nil {
			err = errors.Join(err, listener.Close())
		}
		log.Warn("no admin socket: `touchline buffer` works on a stopped gateway only", "error", err)
		return
	}
	d.admin = &admin{listener: listener, path: path, slots: make(chan struct{}, maxAdminRequests), log: log, d: d}
}

// close frees the socket. It may be called twice.
func (a *admin) close() (err error) {
	a.closed.Do(func() {
		if err = a.listener.Close(); errors.Is(err, net.ErrClosed) { // by run
			err = nil
		}
		if gone := os.Remove(a.path); !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	})
	return err
}

// run serves until ctx ends.
func (a *admin) run(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+adminCheck, a.check)
	mux.HandleFunc("GET "+adminStatus, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, a.d.Status()) })
	mux.HandleFunc("POST "+adminExport, a.export)
	mux.HandleFunc("POST "+adminImport, a.take)
	mux.HandleFunc("POST "+adminStore, a.acceptStore)
	mux.HandleFunc("POST "+adminKey, a.rollKey)
	server := &http.Server{
		Handler:           a.guard(mux),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute, // of this machine's own commands
		MaxHeaderBytes:    64 << 10,        // keys to trust are in it
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peerOf(c))
		},
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(a.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve admin socket: %w", err)
	case <-ctx.Done():
	}
	// Commands under way end with ctx; a command that does not read is cut.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(stop)
	if err != nil {
		err = server.Close()
	}
	<-served
	return err
}

type peerKey struct{}

// A peer is the user at the other end of the socket.
type peer struct {
	uid uint32
	err error // why that is not known
}

// allowed says whether the peer may do what the gateway's own user may.
func (p peer) allowed() error {
	if p.err != nil {
		return fmt.Errorf("who is asking can't be told: %w", p.err)
	}
	if p.uid != 0 && p.uid != uint32(os.Geteuid()) {
		return fmt.Errorf("user %d may not: only user %d, as which the gateway runs, and root may", p.uid, os.Geteuid())
	}
	return nil
}

// guard lets in who may, and not too many at a time.
func (a *admin) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := r.Context().Value(peerKey{}).(peer)
		if err := p.allowed(); err != nil {
			a.log.Warn("a command was refused", "error", err)
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if r.URL.Path == adminStatus { // which costs nothing, and is wanted most while something goes on
			next.ServeHTTP(w, r)
			return
		}
		select {
		case a.slots <- struct{}{}:
			defer func() { <-a.slots }()
		default:
			http.Error(w, "other commands are running on this gateway: wait for their end", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *admin) check(w http.ResponseWriter, r *http.Request) {
	report, err := a.d.buffer.Check(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusOK, report)
}

// export streams an archive. It needs no disk of the gateway's own, and the
// gateway need not be able to write where the archive goes. What goes wrong
// after the first byte shows as an archive without an end, and as a broken
// stream.
func (a *admin) export(w http.ResponseWriter, r *http.Request) {
	out := &patient{w: w, control: http.NewResponseController(w)}
	_, err := writeArchive(r.Context(), a.d.buffer, exportOptions{
		dir: a.d.config.Gateway.Data, gateway: a.d.config.Gateway.ID, all: r.URL.Query().Get("all") == "true",
	}, out)
	switch {
	case err == nil:
	case !out.began:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		a.log.Warn("an export was cut off", "error", err)
		panic(http.ErrAbortHandler) // so that the reader sees no end
	}
}

// writePatience is how long an export waits for whoever takes it: a slow stick
// stalls for some seconds.
const writePatience = time.Minute

// patient gives each write its own deadline.
type patient struct {
	w       http.ResponseWriter
	control *http.ResponseController
	began   bool
}

func (p *patient) Write(b []byte) (int, error) {
	p.began = true
	if err := p.control.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

func (a *admin) take(w http.ResponseWriter, r *http.Request) {
	out := a.d.out.get()
	trust, err := trustOf(append(slices.Clone(out.config.Buffer.ImportKeys), r.Header.Values(headerTrust)...))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	taken, err := out.relay.Take(r.Context(), r.Body, trust)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	writeJSON(w, http.StatusOK, taken)
}

// headerTrust has one more key that the user of the command trusts.
const headerTrust = "Touchline-Trust"
