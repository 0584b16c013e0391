package e2e

import (
	"database/sql"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	"touchline/cloud/sqlite"
)

// A verdict is what an audit found.
type verdict struct {
	sent, acked uint64 // samples, each counted once
	stored      uint64 // rows that the query API gave
	epochs      int

	lost    uint64            // acknowledged, and not in the cloud
	known   uint64            // sent again, and there once
	again   uint64            // rows beyond the first of a sample that its client sent again, and the gateway should have known
	resent  uint64            // …that it could not know: without a time and a name
	by      map[string]uint64 // …and should have, by sensor
	doubled uint64            // rows beyond what the client sent
	foreign uint64            // rows that nobody sent
	trouble []string
}

// holds says whether everything acknowledged is there once, and nothing else
// but repeats that can't be told from new samples.
func (v *verdict) holds() bool {
	return v.lost == 0 && v.again == 0 && v.doubled == 0 && v.foreign == 0 && len(v.trouble) == 0
}

func (v *verdict) String() string {
	s := fmt.Sprintf("%d samples acknowledged in %d epochs, %d lost, %d doubled, %d never sent, %d sent again and there once, %d sent again and there twice %v, %d of them without a time and a name",
		v.acked, v.epochs, v.lost, v.doubled, v.foreign, v.known, v.again+v.resent, v.by, v.resent)
	if len(v.trouble) > 0 {
		s += "\n\t" + strings.Join(v.trouble, "\n\t")
	}
	return s
}

const maxTrouble = 20

func (v *verdict) find(format string, args ...any) {
	if len(v.trouble) < maxTrouble {
		v.trouble = append(v.trouble, fmt.Sprintf(format, args...))
	}
}

// audit compares the ledgers of the crowd, which has finished, with what the
// query API gives, then stops the cloud and audits its file.
func (s *site) audit(c *crowd) *verdict {
	s.t.Helper()
	v := &verdict{by: map[string]uint64{}}
	s.tally(c, v)
	s.cloud.terminate()
	if s.storeURL != "" {
		s.auditPostgres(v)
	} else {
		s.auditFile(v)
	}
	return v
}

// tally compares the ledgers of a crowd with what the query API gives of its
// gateway.
func (s *site) tally(c *crowd, v *verdict) {
	s.t.Helper()
	rows := make(map[string][]uint32) // by sensor and sample, how often it is there
	clients := make(map[string]*client)
	for _, one := range c.clients {
		clients[one.sensor] = one
		rows[one.sensor] = make([]uint32, len(one.sent)*one.samples)
	}
	s.eachRow(func(r []string) {
		v.stored++
		one := clients[r[2]]
		if one != nil && one.isBlob(r) {
			return // its message's other samples count
		}
		sample, err := one.identify(r)
		if err != nil {
			v.foreign++
			v.find("the cloud has %q: %v", r, err)
			return
		}
		rows[one.sensor][sample]++
	})
	for _, one := range c.clients {
		v.compare(one, rows[one.sensor])
	}
}

// isBlob says whether a row is a blob that was sent as it is there.
func (c *client) isBlob(r []string) bool {
	number, _, _ := strings.Cut(r[5], "-")
	message, err := strconv.Atoi(number)
	return err == nil && r[3] == "blob" && message < len(c.sent) && r[0] == strconv.FormatInt(messageTime(message), 10) && r[5] == c.text(message)
}

// identify says which sample a row is: time, gateway, sensor, metric, unit,
// value.
func (c *client) identify(r []string) (sample int, err error) {
	if c == nil {
		return 0, errors.New("no such sensor")
	}
	value, err := strconv.ParseFloat(r[5], 64)
	if err != nil {
		return 0, err
	}
	at, err := strconv.ParseInt(r[0], 10, 64)
	if err != nil {
		return 0, err
	}
	sample = int(value)
	message := sample / c.samples
	switch {
	case float64(sample) != value || sample < 0 || message >= len(c.sent):
		return 0, errors.New("no such value was sent")
	case r[3] != "m"+strconv.Itoa(sample%c.samples) || c.bare == (at == messageTime(message)) || r[4] != "":
		return 0, errors.New("the value was sent with another time, metric or unit")
	}
	return sample, nil
}

// compare holds the rows of one sensor against its client's ledger.
func (v *verdict) compare(c *client, rows []uint32) {
	for sample, n := range rows {
		m := sample / c.samples
		v.sent++
		if c.acked[m] {
			v.acked++
			if n == 0 {
				v.lost++
				v.find("lost: %s has no %d, acknowledged in message %d", c.sensor, sample, m)
			}
		}
		switch {
		case n > uint32(c.sent[m]):
			v.doubled += uint64(n) - uint64(c.sent[m])
			v.find("doubled: %s has %d %d times, sent %d times in message %d", c.sensor, sample, n, c.sent[m], m)
		case n > 1 && c.once():
			v.again += uint64(n) - 1
			v.by[c.sensor] += uint64(n) - 1
			v.find("twice: %s has %d %d times, sent %d times in message %d", c.sensor, sample, n, c.sent[m], m)
		case n > 1:
			v.resent += uint64(n) - 1
		case n == 1 && c.sent[m] > 1:
			v.known++
		}
	}
}

// eachRow reads all rows of the query API.
func (s *site) eachRow(take func([]string)) {
	s.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/v1/samples?format=csv&gateway=%s", s.cloudPort, s.venue))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("query: %s", resp.Status)
	}
	lines := csv.NewReader(resp.Body)
	lines.ReuseRecord = true
	for header := true; ; header = false {
		r, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.t.Fatalf("read rows: %v", err)
		}
		if !header {
			take(r)
		}
	}
}

// auditFile checks the stopped cloud's file: cursors, blocks and counters
// agree, nothing had to be kept aside, and the numbers of each epoch have no
// hole: each epoch was drained, and nothing was evicted.
func (s *site) auditFile(v *verdict) {
	s.t.Helper()
	ctx := s.t.Context()
	store, err := sqlite.Open(ctx, s.cloudData, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	audited, err := store.Audit(ctx)
	if err != nil {
		v.find("%v", err)
	}
	if audited.KeptAside > 0 {
		v.find("%d blocks are kept aside", audited.KeptAside)
	}
	if audited.Samples != v.stored {
		v.find("the file has %d samples, the query API gave %d", audited.Samples, v.stored)
	}
	if err := store.Close(); err != nil {
		s.t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(s.cloudData, sqlite.FileName)+"?mode=ro")
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	epochs, err := db.QueryContext(ctx, `
		SELECT hex(epoch), min(first), max(first + count - 1), sum(count)
		FROM block JOIN cursor ON cursor.id = block.cursor GROUP BY cursor.id`)
	if err != nil {
		s.t.Fatal(err)
	}
	defer epochs.Close()
	for epochs.Next() {
		var epoch string
		var first, last, count uint64
		if err := epochs.Scan(&epoch, &first, &last, &count); err != nil {
			s.t.Fatal(err)
		}
		v.epochs++
		if !s.evicts && (first != 1 || last != count) {
			v.find("epoch %s has %d numbers between %d and %d", epoch, count, first, last)
		}
	}
	if err := epochs.Err(); err != nil {
		s.t.Fatal(err)
	}
}
