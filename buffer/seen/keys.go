package seen

import (
	"fmt"
	"slices"
	"time"

	"touchline"
)

const (
	// Names are forgotten after the window of repeats, Idempotency-Keys
	// (touchline.Key.Long) after a day, both in running time, and the oldest
	// before that where there are more: each takes some 130 bytes of memory,
	// so both kinds together stay below 4.5 MiB.
	maxKeys = 16384
	// LongSpan is that day.
	LongSpan = 24 * time.Hour

	// savedKeyBytes is what a key takes in a row.
	savedKeyBytes = 2 * len(touchline.Digest{})

	// firstLong is the number of the first row of long keys. Rows of the two
	// kinds have ranges of numbers of their own, so that what is due of one is
	// a range.
	firstLong = 1 << 61
)

// A Verdict says what is known of a message by its key.
type Verdict uint8

// The verdicts.
const (
	New      Verdict = iota
	Repeated         // its original is stored, or is part of the commit at hand
	Reused           // the name was given to another message
)

// Keys are the names of the messages of the last commits. They are kept in the
// file, a row for each commit and kind, so that they are known after a restart.
type Keys struct {
	kinds [2]keyring // short, long
	early uint64
}

type keyring struct {
	first int64 // number of its first row ever
	span  int64 // ms
	byID  map[touchline.Digest]known
	rows  []row   // oldest first
	now   []added // by the commit at hand
	next  int64   // number of the next row
	due   int64   // rows up to this one may be deleted
}

type known struct {
	body touchline.Digest
	row  int64
}

type row struct {
	n, at int64
	ids   []touchline.Digest
}

// added is a key of the commit at hand, and what it replaced.
type added struct {
	id, body touchline.Digest
	before   known
	replaced bool
}

// A Row is the keys of one commit and kind as the file has them.
type Row struct {
	N    int64
	Data []byte
}

// NewKeys returns an empty memory. Short keys are forgotten after span.
func NewKeys(span time.Duration) *Keys {
	k := new(Keys)
	k.kinds[0] = keyring{span: span.Milliseconds(), first: 1}
	k.kinds[1] = keyring{span: LongSpan.Milliseconds(), first: firstLong}
	for i := range k.kinds {
		r := &k.kinds[i]
		r.byID, r.next, r.due = make(map[touchline.Digest]known), r.first, r.first-1
	}
	return k
}

func (k *Keys) ring(long bool) *keyring {
	if long {
		return &k.kinds[1]
	}
	return &k.kinds[0]
}

// Len returns how many keys are known.
func (k *Keys) Len() int { return len(k.kinds[0].byID) + len(k.kinds[1].byID) }

// Early returns how many keys were forgotten before their time, or never
// known, because there were too many.
func (k *Keys) Early() uint64 { return k.early }

// Judge says what is known of a message. A new one is remembered from now on.
// So is one under a short key that was given to another message, or by a
// sender who says that it is the first time: it replaces the other.
func (k *Keys) Judge(key *touchline.Key) Verdict {
	r := k.ring(key.Long)
	if r.span <= 0 {
		return New
	}
	before, replaced := r.byID[key.ID]
	if replaced && key.Again {
		if before.body == key.Body {
			return Repeated
		}
		if key.Long {
			return Reused
		}
	}
	if len(r.now) >= maxKeys {
		if replaced { // what is known of this name is no longer true
			r.now = append(r.now, added{id: key.ID, before: before, replaced: true})
			delete(r.byID, key.ID)
		}
		k.early++
		return New
	}
	r.now = append(r.now, added{id: key.ID, body: key.Body, before: before, replaced: replaced})
	r.byID[key.ID] = known{body: key.Body, row: r.next}
	return New
}

// Unsaved returns the rows of the keys that were added since the last Commit.
func (k *Keys) Unsaved() []Row {
	var rows []Row
	for i := range k.kinds {
		r := &k.kinds[i]
		if len(r.now) == 0 {
			continue
		}
		data := make([]byte, 0, len(r.now)*savedKeyBytes)
		for j := range r.now {
			data = append(append(data, r.now[j].id[:]...), r.now[j].body[:]...)
		}
		rows = append(rows, Row{N: r.next, Data: data})
	}
	return rows
}

// Pending says whether keys were added since the last Commit.
func (k *Keys) Pending() bool { return len(k.kinds[0].now)+len(k.kinds[1].now) > 0 }

// Commit says that what Unsaved returned is in the file as of the running time
// at, in ms.
func (k *Keys) Commit(at int64) {
	for i := range k.kinds {
		r := &k.kinds[i]
		if len(r.now) == 0 {
			continue
		}
		ids := make([]touchline.Digest, len(r.now))
		for j := range r.now {
			ids[j] = r.now[j].id
		}
		r.rows = append(r.rows, row{n: r.next, at: at, ids: ids})
		r.next++
		r.now = r.now[:0]
		if cap(r.now) > maxKeys/4 {
			r.now = nil
		}
	}
	k.Advance(at)
}

// TakeBack forgets what was added since the last Commit.
func (k *Keys) TakeBack() {
	for i := range k.kinds {
		r := &k.kinds[i]
		for j := len(r.now) - 1; j >= 0; j-- {
			a := &r.now[j]
			if a.replaced {
				r.byID[a.id] = a.before
			} else {
				delete(r.byID, a.id)
			}
		}
		r.now = r.now[:0]
	}
}

// Advance forgets what is due at the running time now, in ms.
func (k *Keys) Advance(now int64) {
	for i := range k.kinds {
		r := &k.kinds[i]
		n := 0
		for n < len(r.rows) && (r.rows[n].at < now-r.span || len(r.byID) > maxKeys) {
			early := r.rows[n].at >= now-r.span
			for _, id := range r.rows[n].ids {
				if r.byID[id].row != r.rows[n].n {
					continue // a later row has it
				}
				delete(r.byID, id)
				if early {
					k.early++
				}
			}
			r.due = r.rows[n].n
			n++
		}
		r.rows = append(r.rows[:0], r.rows[n:]...)
	}
}

// Due returns the ranges of rows that may be deleted, both ends included.
func (k *Keys) Due() (ranges [][2]int64) {
	for i := range k.kinds {
		if r := &k.kinds[i]; r.due >= r.first {
			ranges = append(ranges, [2]int64{r.first, r.due})
		}
	}
	return ranges
}

// Load takes a row from the file. Rows come in the order of their numbers;
// what is due at the running time now, in ms, is not remembered. A row that
// can't be one is an error.
func (k *Keys) Load(saved Row, at, now int64) error {
	long := saved.N >= firstLong
	r := k.ring(long)
	if saved.N < r.next || len(saved.Data) == 0 || len(saved.Data)%savedKeyBytes != 0 || len(saved.Data) > maxKeys*2*savedKeyBytes {
		return fmt.Errorf("row %d of keys has %d bytes, after row %d", saved.N, len(saved.Data), r.next-1)
	}
	r.next = saved.N + 1
	if at < now-r.span {
		r.due = saved.N
		return nil
	}
	k.remember(r, saved, at, now)
	return nil
}

// Recall takes a row from another file than that of Load and Unsaved, after the
// rows of that: what both have named stays as it is there.
func (k *Keys) Recall(saved Row, at, now int64) error {
	r := k.ring(saved.N >= firstLong)
	if len(saved.Data) == 0 || len(saved.Data)%savedKeyBytes != 0 || len(saved.Data) > maxKeys*2*savedKeyBytes {
		return fmt.Errorf("row %d of keys has %d bytes", saved.N, len(saved.Data))
	}
	if r.span <= 0 || at < now-r.span {
		return nil
	}
	saved.N = r.first - 1 // no row of the file: none is deleted when it is due
	k.remember(r, saved, at, now)
	return nil
}

func (k *Keys) remember(r *keyring, saved Row, at, now int64) {
	ids := make([]touchline.Digest, 0, len(saved.Data)/savedKeyBytes)
	for data := saved.Data; len(data) > 0; {
		var id, body touchline.Digest
		copy(id[:], data)
		copy(body[:], data[len(id):])
		data = data[savedKeyBytes:]
		if before, there := r.byID[id]; there && saved.N < r.first && before.row >= r.first {
			continue
		}
		r.byID[id] = known{body: body, row: saved.N}
		ids = append(ids, id)
	}
	// Oldest first: a row of another file belongs before those that are there.
	i := len(r.rows)
	for saved.N < r.first && i > 0 && r.rows[i-1].at > at {
		i--
	}
	r.rows = slices.Insert(r.rows, i, row{n: saved.N, at: min(at, now), ids: ids})
	if len(r.byID) > 2*maxKeys { // a row is at most one limit more
		k.Advance(now)
	}
}
