package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"touchline"
	"touchline/clock"
	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

// KeyStatus says by which key this gateway speaks. Keys go by their
// thumbprints, as `touchline-cloud gateway list` has them.
type KeyStatus struct {
	Thumbprint string    `json:"thumbprint"`        // "": there is no key
	Since      time.Time `json:"since,omitzero"`    // when it was made; zero: before anybody knew the time
	Due        time.Time `json:"due,omitzero"`      // when another one takes over; zero: never by itself
	Next       string    `json:"next,omitempty"`    // made, and not known to be registered yet
	Old        string    `json:"old,omitempty"`     // replaced last; kept while it counts
	OldEnds    time.Time `json:"old_ends,omitzero"` // when that is over
	Rolled     uint64    `json:"rolled"`            // keys that took over since the start
	Repeated   uint64    `json:"repeated"`          // times since then that a cloud had forgotten the key and was told again
	LastError  string    `json:"last_error"`        // why the next key is not registered, or what can't be read
	NextTry    time.Time `json:"next_try,omitzero"` // after that error
}

// A KeyRolled says which key took over from which.
type KeyRolled struct {
	Key     identity.PublicKey `json:"key"`
	Old     identity.PublicKey `json:"old"`
	OldEnds time.Time          `json:"old_ends"` // when the old one counts no more at the cloud; zero: it does not say
}

// errNothingToRoll says that this gateway does not speak by a key.
var errNothingToRoll = errors.New("there is nothing to roll")

// errUnknownKeys says that the cloud takes neither the old key nor the new one.
var errUnknownKeys = errors.New("the cloud knows neither the key in use nor the new one: enroll this gateway again (`touchline-cloud gateway claim --gateway ID`, `touchline enroll CODE`)")

// rollKey makes a new key, or goes on with the one that a roll before this one
// made, has the cloud register it, and takes it up. Where that fails the key in
// use stays, and the new one waits for the next try. now dates a new key, where
// it is known.
func rollKey(ctx context.Context, c touchline.Config, now time.Time) (done KeyRolled, err error) {
	fail := func(err error) (KeyRolled, error) { return KeyRolled{}, fmt.Errorf("roll key: %w", err) }
	dir := c.Gateway.Data
	if len(c.Uplink.URLs) == 0 {
		return fail(fmt.Errorf("%w: uplink.urls is empty: there is no cloud to register a new key at", errNothingToRoll))
	}
	if _, err := identity.Load(dir); errors.Is(err, os.ErrNotExist) { // nor a folder, it may be
		return fail(fmt.Errorf("%w: %s has no key: `touchline enroll CODE` makes and registers the first one", errNothingToRoll, dir))
	}
	unlock, err := identity.Lock(dir)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	next, err := identity.LoadNext(dir)
	if errors.Is(err, os.ErrNotExist) {
		if next, err = identity.MakeNext(dir); err == nil && !now.IsZero() {
			err = identity.Date(dir, identity.NextFile, now)
		}
	}
	if err != nil {
		return fail(err)
	}
	key, err := identity.Load(dir)
	if err != nil {
		return fail(err)
	}
	rolled, err := declare(ctx, c, key, next)
	if errors.Is(err, errUnknownKeys) {
		// A cloud that was restored from a backup may know the one before only.
		if old, oldErr := identity.LoadOld(dir); oldErr == nil && !old.Equal(key) {
			if _, oldErr = declare(ctx, c, old, key); oldErr == nil {
				rolled, err = declare(ctx, c, key, next)
			}
		}
	}
	if err != nil {
		return fail(err)
	}
	if err := identity.Promote(dir); err != nil {
		return fail(fmt.Errorf("the cloud has registered the new key, and it can't be taken up; the old one counts until %s: %w",
			rolled.OldKeyEnds.Format(time.RFC3339), err))
	}
	return KeyRolled{Key: identity.Public(next), Old: identity.Public(key), OldEnds: rolled.OldKeyEnds}, nil
}

// declare tells the cloud that the key to takes over from the key from. It may
// be repeated: the cloud gives the same answer. It is tried at all addresses,
// in order.
func declare(ctx context.Context, c touchline.Config, from, to ed25519.PrivateKey) (rolled wire.Rolled, err error) {
	roll, err := credential.NewKeyRoll(c.Gateway.ID, from, to, time.Time{})
	if err != nil {
		return rolled, err
	}
	var errs []error
	for _, at := range c.Uplink.URLs {
		// The old key, or after its end, where the answer was lost that long
		// ago, the new one.
		for _, signer := range []ed25519.PrivateKey{from, to} {
			if rolled, err = declareAt(ctx, c, at, signer, &roll); !refusedAs(err, http.StatusUnauthorized) {
				break
			}
		}
		if err == nil {
			return rolled, nil
		}
		if refusedAs(err, http.StatusUnauthorized) {
			err = fmt.Errorf("%w (%w)", errUnknownKeys, err)
		}
		if refusedAs(err, http.StatusNotFound) || refusedAs(err, http.StatusMethodNotAllowed) {
			err = fmt.Errorf("this cloud registers no new keys, it may be older than this gateway: %w", err)
		}
		errs = append(errs, err)
	}
	return wire.Rolled{}, errors.Join(errs...)
}

func refusedAs(err error, status int) bool {
	var said *refusal
	return errors.As(err, &said) && said.status == status
}

// declareAt posts the statement, with a token of signer. It is signed with the
// cloud's nonce, so that no clock matters.
func declareAt(ctx context.Context, c touchline.Config, at string, signer ed25519.PrivateKey, roll *credential.KeyRoll) (rolled wire.Rolled, err error) {
	o := EnrolOptions{Cloud: at, CAFile: c.Uplink.CAFile, Insecure: true} // the uplink goes there with such tokens, too, and no secret is sent
	base, err := enrolBase(o)
	if err != nil {
		return rolled, err
	}
	client, err := keyClient(o, c)
	if err != nil {
		return rolled, err
	}
	defer client.CloseIdleConnections()
	var nonce wire.Nonce
	if err := enrolAsk(ctx, client, http.MethodGet, base+wire.NoncePath, nil, &nonce); err != nil {
		return rolled, err
	}
	token, err := mintWith(c, signer, nonce.Nonce)
	if err != nil {
		return rolled, err
	}
	signed := *client
	signed.Transport = asGateway{next: client.Transport, gateway: c.Gateway.ID, token: token}
	if err := enrolAsk(ctx, &signed, http.MethodPost, base+wire.RollPath, roll, &rolled); err != nil {
		return rolled, err
	}
	if rolled.Gateway != c.Gateway.ID {
		return rolled, fmt.Errorf("what answers at %s is no touchline cloud: it names gateway %.60q, not %s", base, rolled.Gateway, c.Gateway.ID)
	}
	return rolled, nil
}

// keyClient returns what asks the cloud, over the way of the uplink.
func keyClient(o EnrolOptions, c touchline.Config) (*http.Client, error) {
	return enrolClient(o, c)
}

// asGateway shows a gateway's credential with each request.
type asGateway struct {
	next           http.RoundTripper
	gateway, token string
}

// RoundTrip implements http.RoundTripper.
func (a asGateway) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+a.token)
	r.Header.Set(wire.HeaderGateway, a.gateway)
	return a.next.RoundTrip(r)
}

// firstKeys is before any key of a gateway was made: a file that is older was
// made while the machine's clock was not set.
var firstKeys = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// readKeys says what keys the folder has. What it can't read is in its error,
// and the rest is as far as it is known. Where now is known, a key is dated
// that was made before it was; a zero now is not known.
func readKeys(dir string, now time.Time) (s KeyStatus, err error) {
	var errs []error
	read := func(load func(string) (ed25519.PrivateKey, error), name string) (thumbprint string, made time.Time) {
		key, err := load(dir)
		if err == nil {
			thumbprint = credential.Thumbprint(credential.PublicKey(key))
			made, err = identity.Made(dir, name)
		}
		if implausible := made.Before(firstKeys) || !now.IsZero() && made.After(now.Add(24*time.Hour)); err == nil && implausible {
			if made = now; !now.IsZero() {
				err = identity.Date(dir, name, now)
			}
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		return thumbprint, made
	}
	s.Thumbprint, s.Since = read(identity.Load, identity.FileName)
	s.Next, _ = read(identity.LoadNext, identity.NextFile)
	if s.Old, s.OldEnds = read(identity.LoadOld, identity.OldFile); !s.OldEnds.IsZero() {
		s.OldEnds = s.OldEnds.Add(credential.RollOverlap)
	}
	return s, errors.Join(errs...)
}

// Keys says which keys this gateway has. The files tell, also of a key that was
// made a moment ago; the running gateway, when the next one is due and what
// went wrong.
func (f *Folder) Keys(ctx context.Context) (KeyStatus, error) {
	keys, err := readKeys(f.config.Gateway.Data, time.Time{})
	if err != nil || !f.Running() {
		return keys, err
	}
	status, err := f.Status(ctx)
	if said := status.Key; said.Thumbprint == keys.Thumbprint {
		said.Next, said.Old = keys.Next, keys.Old
		return said, err
	}
	keys.LastError, keys.NextTry = status.Key.LastError, status.Key.NextTry
	return keys, err
}

// RollKey gives this gateway a new key, which the cloud registers. Where that
// fails, the key in use stays; what was begun a running gateway finishes.
func (f *Folder) RollKey(ctx context.Context) (done KeyRolled, err error) {
	if f.Running() {
		err = f.ask(ctx, http.MethodPost, adminKey, request{}, func(r io.Reader) error { return json.NewDecoder(r).Decode(&done) })
		return done, err
	}
	watch, err := clock.Open(f.config.Gateway.Data, slog.New(slog.DiscardHandler))
	if err != nil {
		return done, err
	}
	now, is := watch.Now()
	if is.State != touchline.ClockSynchronised {
		now = time.Time{}
	}
	return rollKey(ctx, f.config, now)
}

// rollKey answers `touchline key roll`.
func (a *admin) rollKey(w http.ResponseWriter, r *http.Request) {
	done, err := a.d.out.get().roller.roll(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	writeJSON(w, http.StatusOK, done)
}
