package credential

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
	"touchline/internal/folder"
)

// SensorKeysFile is the name of the file in a gateway's data folder.
const SensorKeysFile = "sensors.keys"

const (
	// MaxSensorKeys bounds the sensors of one file: 100,000 lines of at most 440
	// bytes are 44 MB, of usual ones 13 MB; in memory about 300 bytes each.
	MaxSensorKeys = 100_000

	// maxHeld bounds those in quarantine, and holdInterval how fast they come:
	// each rewrites the file, and it is strangers who cause it. 1,000 rewrites of
	// a file of 500 sensors are 65 MB, over a quarter of an hour, and then none.
	maxHeld      = 1000
	holdInterval = time.Second

	// lookInterval is how often it is seen whether the file changed.
	lookInterval = time.Second

	// maxSensorSecret bounds what a sensor may present; ours have 48 characters.
	maxSensorSecret = 256

	maxSensorNote = 200
	sensorPrefix  = "tlsk_"
)

// SensorKeyPattern finds sensors' keys in text: for secret scanners.
const SensorKeyPattern = `\btlsk_[0-9A-Za-z]{43}\b`

// Errors of changes to a SensorKeys, to branch on.
var (
	ErrSensorExists  = errors.New("the sensor has a key already")
	ErrUnknownSensor = errors.New("the sensor is not known")
	ErrNoKeyShown    = errors.New("the sensor has shown no key that could be admitted")
	ErrHoldLimit     = errors.New("no more sensors are held in quarantine now")
)

// A SensorState is what a gateway thinks of a sensor.
type SensorState uint8

// The states, with the names that the file uses.
const (
	Held     SensorState = iota + 1 // held: in quarantine until a person admits it
	Admitted                        // admitted
	Revoked                         // revoked
)

var sensorStates = map[SensorState]string{Held: "held", Admitted: "admitted", Revoked: "revoked"}

// String returns the state's name.
func (s SensorState) String() string { return sensorStates[s] }

// A SensorKey is one sensor of the file.
type SensorKey struct {
	Sensor  string
	State   SensorState
	Created time.Time
	Note    string

	// Hash is the SHA-256 of the key; zero where a sensor in quarantine has shown
	// none. Its first digits tell a person whose key it is.
	Hash [32]byte
}

// A Verdict is what Check thinks of a sensor that shows a key.
type Verdict uint8

// The verdicts. Only LetIn lets in; tell a sensor no more than that, and say
// the rest in the log.
const (
	UnknownSensor Verdict = iota // not in the file: it may be held
	WrongKey
	LetIn
	IsHeld    // it waits in quarantine, with this key
	IsRevoked // with this key, which was right
	IsDamaged // its line can't be read: it needs a new key
)

var verdicts = [...]string{"unknown sensor", "wrong key", "let in", "held in quarantine", "revoked", "its line in the file of keys is damaged"}

// String returns the verdict for a log.
func (v Verdict) String() string { return verdicts[v] }

// A Login is a sensor that was let in, and with which key, so that it can be
// seen later whether it still would be. It is no secret.
type Login struct {
	Sensor string
	hash   [32]byte
}

// A LineProblem is a line of the file that counts for nothing.
type LineProblem struct {
	Line int // 0: the file as a whole
	Text string
}

// String returns the problem for a log.
func (p LineProblem) String() string {
	if p.Line == 0 {
		return p.Text
	}
	return fmt.Sprintf("line %d: %s", p.Line, p.Text)
}

// SensorKeys are the keys of a gateway's sensors, in a text file of their own,
// so that neither a damaged buffer nor a new one locks anybody out. The file
// has SHA-256 sums of keys, never a key. A line that can't be read locks out
// its sensor alone, and is kept as it is.
//
// Several processes may change the file: each change reads it under a lock,
// and replaces it such that a power cut leaves it old or new. What others
// change is seen by Check within about a second. Where the file can't be read
// any more, what was read last goes on to count, and Problems says so. It
// starts no goroutine and needs no closing; its methods may be called
// concurrently.
type SensorKeys struct {
	file   string
	logger *slog.Logger
	begun  time.Time
	looked atomic.Int64 // ns since begun of the last look at the file
	table  atomic.Pointer[sensorTable]
	reads  atomic.Uint64 // tables that were published

	mu       sync.Mutex // covers reading the file into table, and what follows
	lastHold time.Time
}

// A sensorTable is what a file said. It is never changed.
type sensorTable struct {
	sensors  map[string]*SensorKey // nil for one whose line is damaged, or that has two
	byHash   map[[32]byte]string   // whose key it is; "" where it is that of two
	held     int
	problems []LineProblem
	more     int         // problems that are not in the list
	info     fs.FileInfo // of the file when it was read; nil where there was none
	stale    bool        // the file could not be read since
}

// OpenSensorKeys reads the keys in file. A file that is missing holds none,
// and is made by the first change; damaged lines are logged. It fails where
// there is a file that can't be read.
func OpenSensorKeys(file string, logger *slog.Logger) (*SensorKeys, error) {
	k := &SensorKeys{file: file, logger: logger, begun: time.Now()}
	text, info, err := readFile(file, maxSensorFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open sensors' keys: %w", err)
	}
	k.publish(parseSensorFile(string(text)).table(), info)
	return k, nil
}

// Check says what to do with a sensor that shows secret. For one that is let
// in, Login asks again later. It takes as long for a sensor that is unknown as
// for one that is not.
func (k *SensorKeys) Check(sensor, secret string) (Verdict, Login) {
	t := k.look()
	if len(secret) > maxSensorSecret {
		return WrongKey, Login{}
	}
	shown := sha256.Sum256([]byte(secret))
	known, named := t.sensors[sensor]
	var hash [32]byte // of no secret
	if known != nil {
		hash = known.Hash
	}
	right := subtle.ConstantTimeCompare(shown[:], hash[:]) == 1 && secret != ""
	switch {
	case !named:
		return UnknownSensor, Login{}
	case known == nil:
		return IsDamaged, Login{}
	case known.State == Held && (right || hash == [32]byte{}):
		return IsHeld, Login{}
	case !right:
		return WrongKey, Login{}
	case known.State == Revoked:
		return IsRevoked, Login{}
	}
	return LetIn, Login{sensor, shown}
}

// CheckKey is Check for a sensor that shows its key alone, as bearer. The
// verdict is UnknownSensor where no one sensor has the key.
func (k *SensorKeys) CheckKey(secret string) (Verdict, Login) {
	if len(secret) > maxSensorSecret {
		return UnknownSensor, Login{}
	}
	// What a map's lookup tells by its time is about a sum, not about a key.
	sensor := k.look().byHash[sha256.Sum256([]byte(secret))]
	if sensor == "" {
		return UnknownSensor, Login{}
	}
	return k.Check(sensor, secret)
}

// Generation changes when the file may say something new. It looks at the file
// as Check does.
func (k *SensorKeys) Generation() uint64 {
	k.look()
	return k.reads.Load()
}

// Named says whether the file has a line for the sensor, whatever it says: the
// name is not for anybody to use.
func (k *SensorKeys) Named(sensor string) bool {
	_, named := k.look().sensors[sensor]
	return named
}

// Empty says whether the file names no sensor at all.
func (k *SensorKeys) Empty() bool { return len(k.look().sensors) == 0 }

// Admits says whether the sensor would be let in still, with the same key. Ask
// it of connections that are open, about once a second.
func (k *SensorKeys) Admits(l Login) bool {
	known := k.look().sensors[l.Sensor]
	return known != nil && known.State == Admitted && known.Hash == l.hash
}

// List returns the sensors in order of their names.
func (k *SensorKeys) List() []SensorKey {
	t := k.look()
	list := make([]SensorKey, 0, len(t.sensors))
	for _, s := range t.sensors {
		if s != nil {
			list = append(list, *s)
		}
	}
	slices.SortFunc(list, func(a, b SensorKey) int { return strings.Compare(a.Sensor, b.Sensor) })
	return list
}

// Problems returns what is wrong with the file.
func (k *SensorKeys) Problems() []LineProblem {
	t := k.look()
	problems := slices.Clone(t.problems)
	if t.more > 0 {
		problems = append(problems, LineProblem{Text: fmt.Sprintf("%d more lines are damaged", t.more)})
	}
	return problems
}

// Add admits a sensor with a new key, which it returns and does not keep. One
// that is held, revoked or damaged is admitted with it too; for one that is
// admitted already the error wraps ErrSensorExists.
func (k *SensorKeys) Add(sensor, note string) (Secret, error) {
	return k.giveKey("add", sensor, func(known *SensorKey, _ bool) (*SensorKey, error) {
		if known != nil && known.State == Admitted {
			return nil, ErrSensorExists
		}
		return &SensorKey{Note: note}, nil
	})
}

// Renew gives an admitted sensor a new key, which it returns and does not
// keep. The old one is worth nothing from then on.
func (k *SensorKeys) Renew(sensor string) (Secret, error) {
	return k.giveKey("renew", sensor, func(known *SensorKey, _ bool) (*SensorKey, error) {
		if known == nil || known.State != Admitted {
			return nil, ErrUnknownSensor
		}
		return &SensorKey{Note: known.Note}, nil
	})
}

func (k *SensorKeys) giveKey(what, sensor string, change lineChange) (Secret, error) {
	secret := sensorPrefix + random62(secretLen)
	err := k.change(what, sensor, func(known *SensorKey, named bool) (*SensorKey, error) {
		next, err := change(known, named)
		if err == nil {
			next.State, next.Created, next.Hash = Admitted, time.Now(), sha256.Sum256([]byte(secret))
		}
		return next, err
	})
	if err != nil {
		return Secret{}, err
	}
	return NewSecret(secret), nil
}

// Admit lets a sensor out of quarantine, or a revoked one in again, with the
// key that it has shown. Whoever was first to use the name has shown it, so a
// person compares it (List) before.
func (k *SensorKeys) Admit(sensor string) error {
	return k.setState("admit", sensor, Admitted)
}

// Revoke shuts a sensor out, and keeps its line, so that it does not come back
// as an unknown one.
func (k *SensorKeys) Revoke(sensor string) error {
	return k.setState("revoke", sensor, Revoked)
}

func (k *SensorKeys) setState(what, sensor string, state SensorState) error {
	return k.change(what, sensor, func(known *SensorKey, _ bool) (*SensorKey, error) {
		if known == nil {
			return nil, ErrUnknownSensor
		}
		next := *known
		next.State = state
		if state == Admitted && next.Hash == [32]byte{} {
			return nil, ErrNoKeyShown
		}
		return &next, nil
	})
}

// Remove forgets a sensor, its line included, also a damaged one. It is
// unknown from then on.
func (k *SensorKeys) Remove(sensor string) error {
	return k.change("remove", sensor, func(*SensorKey, bool) (*SensorKey, error) { return nil, nil })
}

// Hold puts an unknown sensor into quarantine with the secret that it has
// shown, which may be empty. It does nothing for a sensor that is in the file.
// The error wraps ErrHoldLimit where too many are held, or the last one less
// than a second ago: the sensor will try again.
func (k *SensorKeys) Hold(sensor, secret string) error {
	t := k.look()
	if _, named := t.sensors[sensor]; named {
		return nil
	}
	if err := touchline.CheckSensor(sensor); err != nil {
		return fmt.Errorf("hold sensor: %w", err)
	}
	if len(secret) > maxSensorSecret || t.held >= maxHeld || !k.mayHold() {
		return fmt.Errorf("hold sensor %s: %w", sensor, ErrHoldLimit)
	}
	held := SensorKey{State: Held, Created: time.Now()}
	if secret != "" {
		held.Hash = sha256.Sum256([]byte(secret))
	}
	err := k.change("hold", sensor, func(_ *SensorKey, named bool) (*SensorKey, error) {
		if named {
			return nil, errAddedMeanwhile
		}
		return &held, nil
	})
	if errors.Is(err, errAddedMeanwhile) {
		return nil
	}
	return err
}

var errAddedMeanwhile = errors.New("another process added it meanwhile")

func (k *SensorKeys) mayHold() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); k.lastHold.IsZero() || now.Sub(k.lastHold) >= holdInterval {
		k.lastHold = now
		return true
	}
	return false
}

// A lineChange makes of a sensor's line the next one; nil removes it. known is
// nil where there is none that can be read, named says that there is one.
type lineChange func(known *SensorKey, named bool) (next *SensorKey, err error)

// change reads the file under the lock, and writes it again with what f makes
// of the sensor's line.
func (k *SensorKeys) change(what, sensor string, f lineChange) (err error) {
	fail := func(err error) error { return fmt.Errorf("%s sensor %s: %w", what, sensor, err) }
	if err := touchline.CheckSensor(sensor); err != nil {
		return fmt.Errorf("%s sensor: %w", what, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	unlock, err := lockFile(k.file + ".lock")
	if err != nil {
		return fail(err)
	}
	defer unlock()
	text, _, err := readFile(k.file, maxSensorFile)
	if errors.Is(err, fs.ErrNotExist) {
		if k.table.Load().info != nil { // writing would lock out everybody else
			return fail(fmt.Errorf("%s is gone: put it back, or start touchline again to begin without keys", k.file))
		}
		text, err = []byte(sensorFileHead), nil
	}
	if err != nil {
		return fail(err)
	}
	lines := parseSensorFile(string(text))
	known, named := lines.sensors[sensor]
	next, err := f(known, named)
	if err != nil {
		return fail(err)
	}
	if next != nil {
		next.Sensor = sensor
	}
	if err := lines.set(sensor, next); err != nil {
		return fail(err)
	}
	data := lines.text()
	if err := folder.Replace(k.file, []byte(data), 0o600); err != nil {
		return fail(err)
	}
	t := parseSensorFile(data).table()
	info, err := os.Stat(k.file)
	t.stale = err != nil // the change is made all the same
	k.publish(t, info)
	return nil
}

// look returns the newest table. Once in lookInterval one caller looks at the
// file; the others do not wait for it.
func (k *SensorKeys) look() *sensorTable {
	now, last := int64(time.Since(k.begun)), k.looked.Load()
	if now-last >= int64(lookInterval) && k.looked.CompareAndSwap(last, now) && k.mu.TryLock() {
		defer k.mu.Unlock()
		t := k.table.Load()
		info, err := os.Stat(k.file)
		switch {
		case err == nil && t.info != nil && !t.stale && sameFile(info, t.info):
		case errors.Is(err, fs.ErrNotExist) && t.info == nil:
		default:
			if err := k.reload(); err != nil && (len(t.problems) == 0 || t.problems[0].Text != err.Error()) {
				k.logger.Error("sensors' keys can't be read: those read before go on to count", "error", err)
				k.keep(t, err)
			}
		}
	}
	return k.table.Load()
}

// keep goes on with a table whose file can't be read. k.mu is held.
func (k *SensorKeys) keep(t *sensorTable, err error) {
	kept := *t
	kept.problems = []LineProblem{{Text: err.Error()}}
	kept.stale = true
	k.table.Store(&kept)
}

// reload reads the file. k.mu is held.
func (k *SensorKeys) reload() error {
	text, info, err := readFile(k.file, maxSensorFile)
	if err != nil {
		return fmt.Errorf("read sensors' keys: %w", err)
	}
	k.publish(parseSensorFile(string(text)).table(), info)
	return nil
}

// publish makes t what counts.
func (k *SensorKeys) publish(t *sensorTable, info fs.FileInfo) {
	t.info = info
	if info != nil && info.Mode().Perm()&0o077 != 0 {
		t.problems = append([]LineProblem{{Text: fmt.Sprintf("%s can be reached by other users (mode %04o): chmod 600 %[1]s", k.file, info.Mode().Perm())}}, t.problems...)
	}
	before := k.table.Swap(t)
	k.reads.Add(1)
	if len(t.problems) > 0 && (before == nil || before.more != t.more || !slices.Equal(before.problems, t.problems)) {
		k.logger.Warn("sensors' keys: lines count for nothing", "file", k.file, "problems", len(t.problems)+t.more, "first", t.problems[0].String())
	}
}

// sameFile says whether nothing was written between two looks.
func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}
