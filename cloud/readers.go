package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"touchline/credential"
	"touchline/internal/here"
)

// usedEvery is how exactly the last use of an API key is known: more would be
// a transaction for each request.
const usedEvery = time.Minute

// guard lets readers in: with an API key that has the scope, from anywhere;
// and without one from this machine while listen is on loopback, or from
// anywhere with InsecureRead. A key that does not hold is refused in either
// case, so that a mistake shows.
func (s *Server) guard(need credential.Scopes, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			if s.holdsKey(w, r, need) {
				next(w, r)
			}
			return
		}
		switch {
		case s.opts.InsecureRead:
		case !s.loopback || here.Forwarded(r):
			w.Header().Set("WWW-Authenticate", `Bearer realm="touchline-cloud"`)
			problem(w, http.StatusUnauthorized, fmt.Sprintf("reading needs an API key with the scope %s in the header Authorization: `touchline-cloud key add` makes one. "+
				"Without one it is open to this machine only, while listen is on loopback and no proxy is between; insecure_read = true opens it to everybody who reaches this address", need))
			return
		case !here.Names(r.Host):
			problem(w, http.StatusForbidden, fmt.Sprintf("reading without an API key is open to this machine only, and the request was for the host %.80q: "+
				"ask for 127.0.0.1 or localhost, use a key, or set insecure_read = true", r.Host))
			return
		case r.Header.Get("Sec-Fetch-Site") == "cross-site":
			problem(w, http.StatusForbidden, "a page of another site asks for this: reading without an API key is open to programs of this machine only")
			return
		}
		next(w, r)
	})
}

// holdsKey says whether the request has an API key with the scope, or answers it.
func (s *Server) holdsKey(w http.ResponseWriter, r *http.Request, need credential.Scopes) bool {
	refuse := func(detail string) bool {
		w.Header().Set("WWW-Authenticate", `Bearer realm="touchline-cloud", error="invalid_token"`)
		problem(w, http.StatusUnauthorized, detail)
		return false
	}
	text, ok := bearer(r)
	if !ok {
		return refuse("the header Authorization must be \"Bearer\" and an API key")
	}
	given, err := credential.ParseAPIKey(text)
	if err != nil {
		return refuse(err.Error()) // which quotes nothing
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.ingest.timing.ask)
	defer cancel()
	known, err := s.store.APIKey(ctx, given.ID()) // the zero hash where there is none
	if err != nil && !errors.Is(err, ErrUnknownKey) {
		s.log.Error("look up API key", "error", err)
		w.Header().Set("Retry-After", "5")
		problem(w, http.StatusServiceUnavailable, "the API key can't be checked now")
		return false
	}
	now := time.Now()
	if matches := given.Matches(known.Hash); !matches || err != nil || !known.Counts(now) {
		s.ingest.warn(r, "a reader came with an API key that does not count", "", nil)
		return refuse("the API key is unknown, revoked or over: `touchline-cloud key list` shows those that count")
	}
	if !known.Scopes.Allow(need) {
		problem(w, http.StatusForbidden, fmt.Sprintf("this needs the scope %s, and the API key %s has %s", need, known.Name, known.Scopes))
		return false
	}
	if now.Sub(known.LastUsed) > usedEvery {
		if err := s.store.APIKeyUsed(ctx, known.ID, now); err != nil {
			s.log.Warn("the use of an API key is not noted", "key", known.Name, "error", err)
		}
	}
	return true
}
