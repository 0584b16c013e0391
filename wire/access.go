package wire

import "time"

// Where the cloud answers what is said around sessions.
const (
	NoncePath  = "/v1/nonce"  // GET: a Nonce
	EnrolPath  = "/v1/enroll" // POST an Enrol: an Enrolled
	RollPath   = "/v1/key"    // POST a credential.KeyRoll in JSON: a Rolled
	FramesPath = UplinkPath + "/frames"
	ListenPath = UplinkPath + "/control"
)

// Audience is aud in the token of a gateway that does not know the id of the
// cloud's record store yet; later it is that id.
const Audience = "touchline-cloud"

// HeaderStore has, in the 401 to a token for another record store, the id of
// the cloud's own.
const HeaderStore = "X-Touchline-Store"

// Nonce is the answer of NoncePath.
type Nonce struct {
	Nonce string    `json:"nonce"`
	Time  time.Time `json:"time"` // the cloud's clock
}

// Enrol is what a new gateway sends to EnrolPath.
type Enrol struct {
	Code      string `json:"code"`       // as a person typed it
	Gateway   string `json:"gateway"`    // "" where the cloud names it
	PublicKey string `json:"public_key"` // identity.PublicKey's text form
	Nonce     string `json:"nonce"`      // of NoncePath
	Proof     []byte `json:"proof"`      // credential.Enrolment's Signature, over Gateway as it is here
	Software  string `json:"software"`
}

// Enrolled is its answer, the same for a repeat with the same key.
type Enrolled struct {
	Gateway string `json:"gateway"`
	Venue   string `json:"venue"`
	Store   string `json:"store"`
}

// Rolled is the answer of RollPath, the same for a repeat.
type Rolled struct {
	Gateway    string    `json:"gateway"`
	OldKeyEnds time.Time `json:"old_key_ends"`
}

// Headers of the fallback over HTTP.
const (
	HeaderSession  = "X-Touchline-Session"  // 32 hex digits, drawn by the gateway for each session
	HeaderSequence = "X-Touchline-Sequence" // of POST: 1, 2, 3 …
	HeaderNumber   = "X-Touchline-Number"   // of an answer to GET
	HeaderReceived = "X-Touchline-Received" // of GET: the highest HeaderNumber that arrived
)
