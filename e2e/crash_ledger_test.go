package e2e

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// What a client did and heard.
const (
	eventSent  = iota // a message is about to be handed to a connection
	eventAcked        // its acknowledgement was heard
)

// An entry is one line of a ledger.
type entry struct{ client, event, message int }

// String is the line, a word.
func (e entry) String() string {
	return fmt.Sprintf("%c:%d:%d", "sa"[e.event], e.client, e.message)
}

// parseEntry reads what String gave.
func parseEntry(text string) (e entry, err error) {
	var event rune
	if _, err := fmt.Sscanf(text, "%c:%d:%d", &event, &e.client, &e.message); err != nil {
		return e, fmt.Errorf("read ledger entry %q: %w", text, err)
	}
	if e.event = strings.IndexRune("sa", event); e.event < 0 || e.client < 0 || e.message < 0 {
		return e, fmt.Errorf("read ledger entry %q: no such event", text)
	}
	return e, nil
}

// A ledger keeps what clients sent and heard where it outlives them: sendings
// are in it before they happen, acknowledgements when they were heard. Clients
// that are attached go on where those before them ended.
type ledger struct {
	t     *testing.T
	write func(entry) error
	kept  []entry
}

// entryBytes is the length of a line of a ledger's file; none crosses a page,
// which could be written in two parts.
const entryBytes = 32

// openLedger reads what a file has, and appends to it.
func openLedger(t *testing.T, file io.ReadWriter) *ledger {
	t.Helper()
	text, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{t: t, write: func(e entry) error {
		_, err := fmt.Fprintf(file, "%-*s\n", entryBytes-1, e)
		return err
	}}
	for line := range strings.Lines(string(text)) {
		e, err := parseEntry(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		l.kept = append(l.kept, e)
	}
	return l
}

// attach lets client c, which does not run yet, go on as number i.
func (l *ledger) attach(i int, c *client) {
	for _, e := range l.kept {
		if e.client == i {
			c.apply(e)
		}
	}
	c.record = func(event, message int) {
		if err := l.write(entry{i, event, message}); err != nil {
			l.t.Errorf("write ledger: %v", err)
		}
	}
}

// apply takes one line of a ledger into a client's own.
func (c *client) apply(e entry) {
	for len(c.sent) <= e.message {
		c.sent = append(c.sent, 0)
		c.acked = append(c.acked, false)
	}
	if e.event == eventSent {
		c.sent[e.message]++
	} else {
		c.acked[e.message] = true
	}
}
