package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"touchline"
	"touchline/buffer"
	"touchline/cloud/sqlite"
	"touchline/internal/uml"
	"touchline/wire"
)

// remains is what a power cut left: the gateway's disk and the cloud's, and
// what the clients knew when it came. It serves one goroutine.
type remains struct {
	*writes
	images, mounts [2]string
	replay         *uml.Replay
	known          int // positions of the log that were learned from
	crowd          *crowd
	decoder        *wire.Decoder
	decoded        map[blockKey][]sampleKey // blocks are the same at many points
}

type blockKey struct {
	epoch touchline.Epoch
	first uint64
	crc   uint32
}

// A sampleKey says which sample of a client a stored one is. A blob has none.
type sampleKey struct{ client, sample int }

var (
	noSample      = sampleKey{-1, 0} // a message's blob; its other samples count
	unknownSample = sampleKey{-2, 0}
)

// newRemains works in a folder, which it makes.
func newRemains(w *writes, dir string) *remains {
	w.t.Helper()
	e := &remains{
		writes: w, replay: uml.NewReplay(w.log, slices.Clone(w.base)), crowd: &crowd{progress: &progress{}},
		decoder: wire.NewDecoder(), decoded: make(map[blockKey][]sampleKey),
	}
	for i, name := range []string{"gateway", "cloud"} {
		e.images[i], e.mounts[i] = filepath.Join(dir, name+".img"), filepath.Join(dir, name)
		if err := os.MkdirAll(e.mounts[i], 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	for i, o := range writeLogClients {
		e.crowd.clients = append(e.crowd.clients, &client{clientOptions: o, sensor: sensorName(i, o)})
	}
	return e
}

// cut cuts the power at p, which is not before the last one.
func (e *remains) cut(p cutAt, random *rand.Rand) error {
	if err := e.replay.Advance(p.position); err != nil {
		return err
	}
	for ; e.known < p.position; e.known++ {
		if said, ok := e.said[e.known]; ok {
			e.crowd.clients[said.client].apply(said)
		}
	}
	return e.replay.Cut(p.loss, random, e.images[:]...)
}

// mount lets the host's kernel recover the file systems, and returns what
// undoes it.
func (e *remains) mount() (unmount func() error, err error) {
	var undo []func() error
	unmount = func() (err error) {
		for _, one := range undo {
			err = errors.Join(err, one())
		}
		return err
	}
	for i, image := range e.images {
		out, device, err := mountImage(image, e.mounts[i])
		if err != nil {
			// A superblock is two sectors, and may be torn between them. A
			// machine repairs that from its copy when it boots.
			fixed, _ := exec.Command("e2fsck", "-fy", image).CombinedOutput() // its status says what it found
			e.t.Logf("a file system did not mount and was repaired: %s%s", out, fixed)
			out, device, err = mountImage(image, e.mounts[i])
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("mount what is left: %w: %s", err, out), unmount())
		}
		undo = append(undo, func() error { return errors.Join(unmountWhenIdle(e.mounts[i]), detach(device)) })
	}
	return unmount, nil
}

// mountImage mounts an image by a loop device that was not used for it before.
// `mount -o loop` takes the one that the image has already, and while somebody
// else looks through all loop devices that is the one of the last mount: with
// what it remembers of the image as it was then.
func mountImage(image, dir string) (out []byte, device string, err error) {
	if out, err = exec.Command("losetup", "--find", "--show", image).Output(); err != nil {
		return out, "", fmt.Errorf("losetup: %w", err)
	}
	device = strings.TrimSpace(string(out))
	if out, err = exec.Command("mount", "-t", "ext4", device, dir).CombinedOutput(); err != nil {
		return out, "", errors.Join(err, detach(device))
	}
	return nil, device, nil
}

// detach lets go of a loop device: at once, or when nobody looks at it.
func detach(device string) error {
	if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
		return fmt.Errorf("losetup --detach %s: %w: %s", device, err, out)
	}
	return nil
}

// unmountWhenIdle unmounts. A process that another examiner has just forked has
// our open files until it executes its program: the file system may be busy
// for a moment.
func unmountWhenIdle(dir string) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := syscall.Unmount(dir, 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", dir, errors.Join(err, syscall.Unmount(dir, syscall.MNT_DETACH)))
		}
		pause(context.Background(), time.Millisecond)
	}
}

// examine opens buffer and record store as the programs do, and holds what
// they have against what the clients knew.
func (e *remains) examine() (_ *verdict, err error) {
	v := &verdict{by: map[string]uint64{}}
	unmount, err := e.mount()
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	rows := make([][]uint32, len(e.crowd.clients))
	for i, c := range e.crowd.clients {
		rows[i] = make([]uint32, len(c.sent)*c.samples)
	}
	held := make(map[touchline.Position]sampleKey) // each number once, wherever it is
	for _, open := range []func(context.Context, *verdict) ([]wire.Block, error){e.openCloud, e.openBuffer} {
		blocks, err := open(ctx, v)
		if err != nil {
			v.find("%v", err)
		}
		for _, b := range blocks {
			keys, err := e.keys(b)
			if err != nil {
				v.find("%v", err)
			}
			for i, key := range keys {
				at := touchline.Position{Epoch: b.Epoch, Seq: b.First + uint64(i)}
				was, known := held[at]
				switch held[at] = key; {
				case known && was != key:
					v.find("number %d of epoch %s is one sample in the buffer, another in the cloud", at.Seq, at.Epoch)
				case known || key == noSample:
				case key == unknownSample || key.sample >= len(rows[key.client]):
					v.foreign++
					v.find("number %d of epoch %s is a sample that was not sent yet: %v", at.Seq, at.Epoch, key)
				default:
					rows[key.client][key.sample]++
				}
			}
		}
	}
	for i, c := range e.crowd.clients {
		v.compare(c, rows[i])
	}
	return v, dense(held)
}

// dense says whether the numbers of each epoch have no hole: nothing was
// evicted.
func dense(held map[touchline.Position]sampleKey) error {
	last, count := make(map[touchline.Epoch]uint64), make(map[touchline.Epoch]uint64)
	for at := range held {
		last[at.Epoch] = max(last[at.Epoch], at.Seq)
		count[at.Epoch]++
	}
	for epoch, n := range count {
		if last[epoch] != n {
			return fmt.Errorf("epoch %s has %d numbers up to %d", epoch, n, last[epoch])
		}
	}
	return nil
}

// keys says which samples a block has.
func (e *remains) keys(b wire.Block) ([]sampleKey, error) {
	at := blockKey{b.Epoch, b.First, b.CRC}
	if keys, known := e.decoded[at]; known {
		return keys, nil
	}
	if err := b.Check(); err != nil {
		return nil, err
	}
	samples, err := e.decoder.Decode(nil, b.Data)
	if err != nil {
		return nil, err
	}
	keys := make([]sampleKey, len(samples))
	for i, s := range samples {
		keys[i] = unknownSample
		for n, c := range e.crowd.clients {
			if s.Sensor != c.sensor {
				continue
			}
			if s.Metric == "blob" {
				keys[i] = noSample
				continue
			}
			value := s.Value.Float()
			sample := int(value)
			if float64(sample) == value && sample >= 0 && s.Metric == "m"+strconv.Itoa(sample%c.samples) && s.Time == messageTime(sample/c.samples) {
				keys[i] = sampleKey{n, sample}
			}
		}
	}
	e.decoded[at] = keys
	return keys, nil
}

// openBuffer opens the gateway's buffer and reads all of it.
func (e *remains) openBuffer(ctx context.Context, v *verdict) (blocks []wire.Block, err error) {
	b, err := buffer.Open(ctx, buffer.Options{Dir: filepath.Join(e.mounts[0], "data"), MaxBytes: math.MaxInt64, WhenFull: buffer.Refuse}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := b.Close(); err == nil && closed != nil {
			err = closed
		}
	}()
	st := b.Stats()
	if len(st.Aside) > 0 || st.LostRecords > 0 {
		v.find("the buffer has set aside %+v, and has %d records of losses", st.Aside, st.LostRecords)
	}
	var after touchline.Position
	for samples := int64(0); samples < st.Samples; {
		some, err := b.Next(ctx, after, 1<<20)
		if err != nil {
			return blocks, fmt.Errorf("read block after %v: %w", after, err)
		}
		for _, one := range some {
			samples += int64(one.Count)
			after = touchline.Position{Epoch: one.Epoch, Seq: one.Last()}
		}
		blocks = append(blocks, some...)
	}
	return blocks, nil
}

// openCloud opens the cloud's record store, audits it, and reads all of it.
func (e *remains) openCloud(ctx context.Context, v *verdict) (blocks []wire.Block, err error) {
	dir := filepath.Join(e.mounts[1], "data")
	store, err := sqlite.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := store.Close(); err == nil && closed != nil {
			err = closed
		}
	}()
	audited, err := store.Audit(ctx)
	if err != nil {
		v.find("%v", err)
	}
	if audited.KeptAside > 0 {
		v.find("%d blocks are kept aside", audited.KeptAside)
	}
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, sqlite.FileName)+"?mode=ro")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "SELECT epoch, first, count, crc, data FROM block JOIN cursor ON cursor.id = block.cursor")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var b wire.Block
		var epoch []byte
		if err := rows.Scan(&epoch, &b.First, &b.Count, &b.CRC, &b.Data); err != nil {
			return nil, err
		}
		copy(b.Epoch[:], epoch)
		blocks = append(blocks, b)
	}
	return blocks, rows.Err()
}

// start lets the programs go on with what is left until all of it is in the
// cloud, and audits that.
func (e *remains) start() (_ *verdict, err error) {
	e.t.Helper()
	unmount, err := e.mount()
	if err != nil {
		return &verdict{}, err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	s := &site{
		venue: "venue-1", t: e.t, cloudProgram: "touchline-cloud", gatewayProgram: "touchline", beginCloud: (*exec.Cmd).Start, beginGateway: (*exec.Cmd).Start,
		cloudPort: freePort(e.t), mqtt: freePort(e.t), http: freePort(e.t),
		gatewayData: filepath.Join(e.mounts[0], "data"), cloudData: filepath.Join(e.mounts[1], "data"),
	}
	conf := e.t.TempDir()
	s.cloudConfig, s.gatewayConfig = filepath.Join(conf, "cloud.toml"), filepath.Join(conf, "touchline.toml")
	writeFile(e.t, s.cloudConfig, fmt.Sprintf("listen = \"127.0.0.1:%d\"\ndata = %q\n", s.cloudPort, s.cloudData))
	writeFile(e.t, filepath.Join(conf, "token"), e.token)
	s.configureGateway("[buffer]\nfree_reserve = \"0B\"\n[sensors]\ndedupe_window = \"10m\"\n", filepath.Join(conf, "token"))
	s.startCloud()
	s.startGateway()
	s.drained()
	v := s.audit(e.crowd)
	s.gateway.terminate()
	return v, nil
}
