package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"touchline"
	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

// EnrolOptions are what a gateway is registered with.
type EnrolOptions struct {
	Code     string // as a person typed it
	Cloud    string // address as in uplink.urls
	Gateway  string // the id it asks for; "" where the cloud names it
	CAFile   string // own roots (PEM); "": uplink.ca_file, or else the system's
	Insecure bool   // the code may go over a network without TLS
}

const (
	enrolTimeout  = 30 * time.Second // of one request
	maxEnrolBytes = 64 << 10         // of an answer
	maxRetryAfter = 6 * time.Hour    // whatever it asks for
)

// Enrol registers this gateway's key, which is made where there is none, with
// a claim code. It may be repeated: the cloud gives the same answer to the same
// key. What the cloud calls the gateway is kept in the data folder, and its
// record store where none is known: to deliver to another one than until now
// takes a word of its own, `touchline uplink accept-store`.
func (f *Folder) Enrol(ctx context.Context, o EnrolOptions) (wire.Enrolled, error) {
	fail := func(err error) (wire.Enrolled, error) { return wire.Enrolled{}, fmt.Errorf("enroll: %w", err) }
	claim, err := credential.ParseClaim(o.Code) // typos are found here
	if err != nil {
		return fail(err)
	}
	base, err := enrolBase(o)
	if err != nil {
		return fail(err)
	}
	dir := f.config.Gateway.Data
	if err := os.MkdirAll(dir, 0o700); err != nil { // a technician enrols before the first start
		return fail(fmt.Errorf("gateway.data: %w", err))
	}
	client, err := enrolClient(o, f.config)
	if err != nil {
		return fail(err)
	}
	defer client.CloseIdleConnections()
	key, err := identity.LoadOrMake(dir)
	if err != nil {
		return fail(err)
	}
	var nonce wire.Nonce
	if err := enrolAsk(ctx, client, http.MethodGet, base+wire.NoncePath, nil, &nonce); err != nil {
		return fail(err)
	}
	proof, err := credential.NewEnrolment(claim, key, o.Gateway, nonce.Nonce)
	if err != nil {
		return fail(err)
	}
	var done wire.Enrolled
	err = enrolAsk(ctx, client, http.MethodPost, base+wire.EnrolPath, wire.Enrol{
		Code: claim.Reveal(), Gateway: o.Gateway, PublicKey: identity.Public(key).String(),
		Nonce: nonce.Nonce, Proof: proof.Signature, Software: "touchline/" + touchline.Version,
	}, &done)
	if err != nil {
		return fail(err)
	}
	if err := touchline.CheckGateway(done.Gateway); err != nil {
		return fail(fmt.Errorf("the cloud's answer: %w", err))
	}
	if err := touchline.KeepGatewayID(dir, done.Gateway); err != nil {
		return fail(fmt.Errorf("the cloud calls this gateway %s, and that can't be kept: set gateway.id in the settings: %w", done.Gateway, err))
	}
	if err := keepFirstStore(dir, done.Store); err != nil {
		return fail(fmt.Errorf("the cloud's record store is %.300q, and that can't be kept: %w", done.Store, err))
	}
	return done, nil
}

// keepFirstStore keeps the id of the record store unless there is one.
func keepFirstStore(dir, id string) error {
	known, err := knownStore(dir)
	if err != nil || known != "" {
		return err
	}
	return keepStore(dir, id)
}

// enrolBase returns where the cloud answers, without a path.
func enrolBase(o EnrolOptions) (string, error) {
	u, err := url.Parse(o.Cloud)
	scheme := map[string]string{"ws": "http", "http": "http", "wss": "https", "https": "https"}
	if err != nil || u.Host == "" || scheme[u.Scheme] == "" || u.User != nil {
		return "", fmt.Errorf("%q is no address of a cloud: write such as \"wss://cloud.example.org\"", o.Cloud)
	}
	ip := net.ParseIP(u.Hostname())
	if scheme[u.Scheme] == "http" && !o.Insecure && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", fmt.Errorf("%s has no TLS, and whoever reads along gets the code: use wss://, or --insecure where the network is your own", o.Cloud)
	}
	return scheme[u.Scheme] + "://" + u.Host, nil
}

// enrolClient goes the way of the uplink, with the roots of o where it names
// any.
func enrolClient(o EnrolOptions, c touchline.Config) (*http.Client, error) {
	if o.CAFile != "" {
		c.Uplink.CAFile = o.CAFile
	}
	r, err := (&Folder{config: c}).Route()
	if err != nil {
		return nil, err
	}
	client := r.Client()
	client.Timeout = enrolTimeout
	return client, nil
}

// enrolAsk sends and reads JSON. Errors have the cloud's words.
func enrolAsk(ctx context.Context, client *http.Client, method, to string, send, answer any) error {
	var body io.Reader
	if send != nil {
		text, err := json.Marshal(send)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "touchline/"+touchline.Version)
	resp, err := client.Do(req)
	if err != nil {
		return notReached{fmt.Errorf("ask the cloud: %w (`touchline preflight` looks for the reason)", err)}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxEnrolBytes))
	if err != nil {
		return notReached{fmt.Errorf("read the cloud's answer: %w", err)}
	}
	if resp.StatusCode != http.StatusOK {
		r := refused(to, resp, text)
		if !r.said || r.status >= 500 || r.status == http.StatusTooManyRequests {
			return notReached{r}
		}
		return r
	}
	if err := json.Unmarshal(text, answer); err != nil { // the page of a hotel, say
		return notReached{fmt.Errorf("what answers at %s is no touchline cloud: %w", to, err)}
	}
	return nil
}

// ErrNotReached says that an enrolment did not get through to the cloud: the
// line is not there yet, or something stands in between that will go away. Any
// other error stays what it is until a person does something.
var ErrNotReached = errors.New("the cloud was not reached")

// notReached marks an error that way, and leaves its words.
type notReached struct{ error }

func (e notReached) Unwrap() error        { return e.error }
func (e notReached) Is(target error) bool { return target == ErrNotReached }

// A refusal is an answer of the cloud, or of what stands in its place, that is
// not the one that was asked for.
type refusal struct {
	status int
	said   bool          // by a touchline cloud, and not by what stands in its place
	after  time.Duration // what Retry-After asks for
	text   string
}

func (r *refusal) Error() string { return r.text }

func refused(to string, resp *http.Response, text []byte) *refusal {
	r := &refusal{status: resp.StatusCode}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		r.after = min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	var problem struct{ Title, Detail string }
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") && json.Unmarshal(text, &problem) == nil {
		if problem.Detail == "" {
			problem.Detail = problem.Title
		}
		r.said = true
		r.text = fmt.Sprintf("the cloud says: %.500q (%s)", problem.Detail, resp.Status)
		return r
	}
	hint := "is this the address of a touchline cloud?"
	if place := resp.Header.Get("Location"); place != "" {
		hint = fmt.Sprintf("it points to %.200q", place)
	}
	r.text = fmt.Sprintf("%s answers %s: %s", to, resp.Status, hint)
	return r
}

// mint signs a credential for one handshake with the key in the data folder,
// which is read each time, so that a new one counts. It is for the cloud that
// this gateway delivers to and no other. nonce is the cloud's, or empty.
func mint(c touchline.Config, nonce string) (string, error) {
	key, err := identity.Load(c.Gateway.Data)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s does not exist: `touchline enroll CODE` registers this gateway, or name a token in uplink.token_file", filepath.Join(c.Gateway.Data, identity.FileName))
	}
	if err != nil {
		return "", err
	}
	return mintWith(c, key, nonce)
}

// mintWith is mint with a key that need not be the one in use.
func mintWith(c touchline.Config, key ed25519.PrivateKey, nonce string) (string, error) {
	audience, err := knownStore(c.Gateway.Data)
	if err != nil {
		return "", err
	}
	if audience == "" {
		audience = wire.Audience // and the cloud asks for a nonce
	}
	token, err := credential.NewToken(credential.TokenRequest{Gateway: c.Gateway.ID, Key: key, Audience: audience, Nonce: nonce})
	if err != nil {
		return "", err
	}
	return token.Reveal(), nil
}

// uplinkToken returns what the handshakes carry: the token in uplink.token_file,
// or else a signature with the gateway's key.
func uplinkToken(c touchline.Config, nonce string) (string, error) {
	if c.Uplink.TokenFile == "" {
		token, err := mint(c, nonce)
		if err != nil {
			return "", fmt.Errorf("uplink.token_file is empty, and the gateway's key can't sign: %w", err)
		}
		return token, nil
	}
	token, err := firstLine(c.Uplink.TokenFile)
	if err != nil {
		return "", fmt.Errorf("uplink.token_file %s: %w", c.Uplink.TokenFile, err)
	}
	return token, nil
}
