package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"touchline/internal/uml"
)

// partMiB is the size of the gateway's file system, and of the cloud's: room
// for a write-ahead log of 16 MiB, which is copied then, and for what it is
// copied into.
const partMiB = 64

// TestUML_EveryWriteIsACrashPoint runs gateway, cloud and clients on ext4 on a
// disk whose every write is logged in the order in which it was durable, with
// a mark for each message that is sent and each acknowledgement that is heard.
// Then the power is cut at thousands of positions of the log, at both machines
// at once: before each flush, after it, and between, with what was not flushed
// kept, lost, there in part and torn. Each time the host's kernel recovers the
// file systems, and the product its files. Whatever was acknowledged must be
// in the buffer or in the cloud, nothing twice. At some of the points the
// programs themselves are started on what is left, and audited.
func TestUML_EveryWriteIsACrashPoint(t *testing.T) {
	if uml.Inside() {
		writeLogInside(t)
		return
	}
	w := recordWrites(t, 12, "touchline")
	w.walk(2500)
	w.startAt(25)
	t.Logf("MEASURED log of writes, seed %d: %s", w.seed, w)
	if w.broken > 0 {
		t.Errorf("%d of %d points broke a promise:\n\t%s", w.broken, w.points, strings.Join(w.trouble, "\n\t"))
	}
}

// TestUML_EveryWriteControlFails is the control: a gateway that does not sync
// its commits.
func TestUML_EveryWriteControlFails(t *testing.T) {
	if uml.Inside() {
		writeLogInside(t)
		return
	}
	needGuests(t)
	w := recordWrites(t, 2, mutant(t, "touchline", "mutant_sync_normal"))
	w.walk(200)
	t.Logf("MEASURED control of the log of writes (synchronous=NORMAL), seed %d: %s", w.seed, w)
	if w.lost == 0 {
		t.Error("nothing was lost without syncs")
	}
}

// writeLogInside is the guest's side: a disk in two parts, each logged, a site
// on it, and kills, so that the log has starts and recoveries.
func writeLogInside(t *testing.T) {
	sectors := strings.TrimSpace(tool(t, "blockdev", "--getsz", "/dev/ubda"))
	createDevice(t, "log", fmt.Sprintf("0 %s log-writes /dev/ubda /dev/ubdb", sectors))
	part := partMiB << 20 / 512
	for i, name := range []string{"a", "b"} {
		createDevice(t, name, fmt.Sprintf("0 %d linear /dev/mapper/log %d", part, i*part))
		mountIn(t, "/dev/mapper/"+name, "/mnt/"+name)
	}
	marker, err := uml.NewMarker("log")
	if err != nil {
		t.Fatal(err)
	}
	defer marker.Close()
	s := keptSite(t, os.Getenv("GUEST_GATEWAY"))
	s.ledger = &ledger{t: t, write: func(e entry) error { return marker.Mark(e.String()) }}
	s.startCloud()
	s.startGateway()
	if err := marker.Mark("begin"); err != nil {
		t.Fatal(err)
	}
	c := s.publish(writeLogClients...)
	k := newKiller(s, c, crashSeed(t))
	for k.total() < atoi(t, os.Getenv("GUEST_KILLS")) {
		k.strike()
	}
	// Without the cloud, what is acknowledged is in the buffer alone.
	s.waitReady("touchline-cloud", s.cloud, s.cloudPort)
	k.killCloud()
	c.more(t, 2000)
	s.startCloud()
	c.more(t, 500)
	if err := marker.Mark("end"); err != nil {
		t.Fatal(err)
	}
	v := k.conclude()
	if !v.holds() {
		t.Errorf("without a power cut: %s", v)
	}
	s.gateway.terminate()
	for _, name := range []string{"a", "b"} {
		tool(t, "umount", "/mnt/"+name)
		deviceMapper(t, "remove", name)
	}
	deviceMapper(t, "remove", "log")
}

// writeLogClients are those of which a new session needs to know nothing.
var writeLogClients = []clientOptions{
	{transport: "mqtt4", qos: 1, samples: 1, window: 16, pace: 1},
	{transport: "mqtt5", qos: 1, samples: 2, window: 16, pace: 1},
	{transport: "ws", samples: 3, window: 16, pace: 1},
	{transport: "http", samples: 5, blob: 2 << 10, window: 4, pace: 1},
}

func atoi(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatalf("read number %q: %v", text, err)
	}
	return n
}

// writes is what a guest did to its disk, and what was learned while it did.
type writes struct {
	t     *testing.T
	seed  uint64
	log   *uml.WriteLog
	said  map[int]entry // marks of the clients, by position
	base  []byte        // the disk before the first write
	token string        // of the gateway
	begin int           // positions between which power is cut
	end   int

	points, programs, broken int
	lost, doubled, foreign   int // samples, summed over the points
	acked                    int // at most
	flushes, marks           int
	by                       [uml.Losses]int // points
	trouble                  []string
}

func (w *writes) String() string {
	return fmt.Sprintf("%d crash points among %d writes and flushes (%d flushes) and %d marks; by what was not flushed: kept %d, lost %d, some %d, torn %d; the programs were started at %d; %d points broke a promise: %d samples lost, %d doubled, %d never sent; up to %d samples acknowledged",
		w.points, w.end-w.begin-w.marks, w.flushes, w.marks, w.by[uml.Kept], w.by[uml.Lost], w.by[uml.Some], w.by[uml.Torn],
		w.programs, w.broken, w.lost, w.doubled, w.foreign, w.acked)
}

// recordWrites runs the guest and reads its log.
func recordWrites(t *testing.T, kills int, gateway string) *writes {
	t.Helper()
	needGuests(t)
	if os.Geteuid() != 0 {
		t.Skip("only root may mount what a power cut left")
	}
	w := &writes{t: t, seed: crashSeed(t), said: make(map[int]entry)}
	t.Logf("TOUCHLINE_CRASH_SEED=%d", w.seed)
	dir := t.TempDir()
	disk, log := filepath.Join(dir, "disk"), filepath.Join(dir, "log")
	for range 2 {
		part, err := os.ReadFile(guestDisk(t, partMiB))
		if err != nil {
			t.Fatal(err)
		}
		w.base = append(w.base, part...)
	}
	writeFile(t, disk, string(w.base))
	writeFile(t, log, "")
	if err := os.Truncate(log, 8<<30); err != nil { // sparse; a log that is full is logged no more
		t.Fatal(err)
	}
	o := guestOptions{shared: t.TempDir(), disks: []string{disk, log}}
	o.env = fmt.Sprintf("GUEST_GATEWAY=%s GUEST_KILLS=%d TOUCHLINE_CRASH_SEED=%d", gateway, kills, w.seed)
	if filepath.IsAbs(gateway) { // where the guest sees it
		tool(t, "cp", gateway, o.shared)
		o.env = fmt.Sprintf("GUEST_GATEWAY=/shared/%s GUEST_KILLS=%d TOUCHLINE_CRASH_SEED=%d", filepath.Base(gateway), kills, w.seed)
	}
	boot(t, o).finish()
	token, err := os.ReadFile(filepath.Join(o.shared, "token"))
	if err != nil {
		t.Fatal(err)
	}
	w.token = string(bytes.TrimSpace(token))
	if w.log, err = uml.OpenWriteLog(log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.log.Close() })
	is := func(mark string) func(uml.LogEntry) bool {
		return func(e uml.LogEntry) bool { return e.Mark == mark }
	}
	w.begin, w.end = slices.IndexFunc(w.log.Entries, is("begin")), slices.IndexFunc(w.log.Entries, is("end"))
	if w.begin < 0 || w.end < w.begin {
		t.Fatalf("the log of %d entries begins at %d and ends at %d: is it complete?", len(w.log.Entries), w.begin, w.end)
	}
	for i, e := range w.log.Entries[:w.end] {
		if i <= w.begin {
			continue
		}
		if e.Mark != "" {
			w.marks++
			if w.said[i], err = parseEntry(e.Mark); err != nil {
				t.Fatal(err)
			}
		}
		if e.Flush {
			w.flushes++
		}
	}
	return w
}

// A cutAt is one crash point.
type cutAt struct {
	position int
	loss     uml.Loss
}

// choose draws n crash points in order: half of them just before or after a
// flush, half anywhere.
func (w *writes) choose(n int, stream uint64) []cutAt {
	random := rand.New(rand.NewPCG(w.seed, stream))
	var edges []int
	for i, e := range w.log.Entries[:w.end] {
		if i > w.begin && e.Flush {
			edges = append(edges, i, i+1)
		}
	}
	points := make([]cutAt, n)
	for i := range points {
		points[i] = cutAt{w.begin + 1 + random.IntN(w.end-w.begin), uml.Loss(i) % uml.Losses}
		if i%8 < 4 {
			points[i].position = edges[random.IntN(len(edges))]
		}
	}
	slices.SortFunc(points, func(a, b cutAt) int { return a.position - b.position })
	return points
}

// examiners at work at once: mounting is waiting, mostly.
const examiners = 6

// walk cuts the power at n points and examines what is left.
func (w *writes) walk(n int) {
	w.t.Helper()
	// Each examiner has two images, which are sparse, and a replay in memory.
	work := diskKinds[0].mount(w.t, examiners*2*partMiB)
	var mu sync.Mutex // covers the counters of w
	var all sync.WaitGroup
	points := w.choose(n, 1)
	for i := range examiners {
		first := i * n / examiners
		mine := points[first : (i+1)*n/examiners]
		e := newRemains(w, filepath.Join(work.dir, strconv.Itoa(i)))
		all.Go(func() {
			for j, p := range mine {
				err := e.cut(p, rand.New(rand.NewPCG(w.seed, uint64(2+first+j))))
				v := &verdict{}
				if err == nil {
					v, err = e.examine()
				}
				mu.Lock()
				w.add(p, v, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
}

// startAt cuts the power at n points and starts the programs on what is left.
func (w *writes) startAt(n int) {
	w.t.Helper()
	e := newRemains(w, filepath.Join(diskKinds[0].mount(w.t, 2*partMiB).dir, "0"))
	for i, p := range w.choose(n, 1<<32) {
		err := e.cut(p, rand.New(rand.NewPCG(w.seed, 1<<32+uint64(1+i))))
		v := &verdict{}
		if err == nil {
			v, err = e.start()
		}
		w.programs++
		w.add(p, v, err)
	}
}

// add counts a point.
func (w *writes) add(p cutAt, v *verdict, err error) {
	if err != nil {
		v.find("%v", err)
	}
	w.points++
	w.by[p.loss]++
	w.lost, w.doubled, w.foreign = w.lost+int(v.lost), w.doubled+int(v.doubled), w.foreign+int(v.foreign)
	w.acked = max(w.acked, int(v.acked))
	if v.holds() {
		return
	}
	w.broken++
	if len(w.trouble) < maxTrouble {
		w.trouble = append(w.trouble, fmt.Sprintf("cut at %d, what was not flushed %s: %s", p.position, p.loss, v))
	}
}
