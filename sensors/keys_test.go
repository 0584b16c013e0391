package sensors

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"touchline"
)

func TestNaming_TrustsClientsThatCount(t *testing.T) {
	count := func(first, n int) (ids []uint16) {
		for i := range n {
			ids = append(ids, uint16((first+i-1)%65535+1))
		}
		return ids
	}
	var lowest []uint16 // always 1, 2, 3 are in flight
	for range 100 {
		lowest = append(lowest, 1, 2, 3)
	}
	for name, tc := range map[string]struct {
		before []uint16
		id     uint16
		dup    bool
		want   bool
	}{
		"its first message":                      {id: 1},
		"a repeat from before the start":         {id: 7, dup: true},
		"an id that nobody has as the lowest":    {id: lowestFree + 1, want: true},
		"a repeat of such an id":                 {id: lowestFree + 1, dup: true, want: true},
		"counted too little":                     {before: count(1, countingIDs-1), id: countingIDs},
		"counted":                                {before: count(1, countingIDs), id: countingIDs + 1, want: true},
		"a repeat of what was counted":           {before: count(1, countingIDs+2), id: countingIDs, dup: true, want: true},
		"counted over the end":                   {before: count(65535-countingIDs, countingIDs+3), id: 4, want: true},
		"the lowest free of what was queued":     {before: count(1, 200), id: 1, dup: true},
		"always the same id":                     {before: make([]uint16, 200), id: 1},
		"always the same high id":                {before: []uint16{5000, 5000}, id: 5000, dup: true},
		"high ids in any order":                  {before: []uint16{5000, 9000, 7000}, id: 7000, dup: true},
		"high ids with gaps":                     {before: []uint16{5000, 7000, 9000}, id: 9000, dup: true, want: true},
		"any order, then counted":                {before: append([]uint16{9000, 7000}, count(7001, countingIDs+1)...), id: 7001, dup: true, want: true},
		"the lowest free id":                     {before: lowest, id: 1},
		"counted, then the lowest free":          {before: append(count(1, 100), 1), id: 2},
		"counted, with other packets in between": {before: []uint16{1, 3, 5}, id: 6},
	} {
		t.Run(name, func(t *testing.T) {
			var n naming
			for _, id := range tc.before {
				n.names(max(id, 1), false)
			}
			if got := n.names(tc.id, tc.dup); got != tc.want {
				t.Errorf("id %d names its message: %t, want %t", tc.id, got, tc.want)
			}
		})
	}
}

func TestIdempotencyKey_AsTheDraftSaysAndBare(t *testing.T) {
	long := strings.Repeat("k", maxKeyBytes)
	for _, tc := range []struct {
		header []string
		want   string
		bad    bool
	}{
		{header: nil},
		{header: []string{`"8e03978e-40d5"`}, want: "8e03978e-40d5"},
		{header: []string{` "a b\"c\\d" `}, want: `a b"c\d`},
		{header: []string{`"a";x=1`}, want: "a"},
		{header: []string{`8e03978e-40d5`}, want: "8e03978e-40d5"},
		{header: []string{`"` + long + `"`}, want: long},
		{header: []string{long}, want: long},
		{header: []string{`""`}, bad: true},
		{header: []string{``}, bad: true},
		{header: []string{`"` + long + `k"`}, bad: true},
		{header: []string{long + "k"}, bad: true},
		{header: []string{`"a`}, bad: true},
		{header: []string{`"a\`}, bad: true},
		{header: []string{`"a\b"`}, bad: true},
		{header: []string{`"a" b`}, bad: true},
		{header: []string{`"é"`}, bad: true},
		{header: []string{`é`}, bad: true},
		{header: []string{`a b`}, bad: true},
		{header: []string{`a"b`}, bad: true},
		{header: []string{`a,b`}, bad: true},
		{header: []string{`"a", "b"`}, bad: true},
		{header: []string{`"a"`, `"a"`}, bad: true},
	} {
		got, err := idempotencyKey(http.Header{"Idempotency-Key": tc.header})
		if got != tc.want || (err != nil) != tc.bad {
			t.Errorf("%.40q is read as %.40q (%v), want %.40q", tc.header, got, err, tc.want)
		}
	}
}

func FuzzIdempotencyKey(f *testing.F) {
	for _, seed := range []string{``, `"a"`, `"a\"b\\";q`, `8e03978e-40d5-43dd`, `"`, `"\`, `"a" `, "\x80"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := idempotencyKey(http.Header{"Idempotency-Key": {text}})
		if (err == nil) != (key != "") || len(key) > maxKeyBytes {
			t.Fatalf("%q is read as %q (%v)", text, key, err)
		}
	})
}

// publishDup is publish with DUP set.
func (c *rawClient) publishDup(t testing.TB, qos byte, id uint16, topic, payload string) {
	t.Helper()
	p := publishPacket(c.version, qos, id, topic, payload)
	p[0] |= 8
	c.send(t, p)
}

// A PUBLISH is named by client, id, topic and payload where its samples have
// no time of their own, its id is a name and its session is kept.
func TestMQTT_NamesWhatItStamps(t *testing.T) {
	const id = 5000
	for _, version := range []byte{4, 5} {
		for _, qos := range []byte{1, 2} {
			t.Run(fmt.Sprintf("version %d, QoS %d", version, qos), func(t *testing.T) {
				store := newStore(t)
				in := newTestIntake(t, store)
				m := startMQTT(t, in, nil, new(logBuffer).logger())
				ack := byte(kPuback)
				if qos == 2 {
					ack = kPubrec
				}
				keyOf := func(client string, send func(*rawClient)) []touchline.Key {
					c := dialMQTT(t, m.Addr(), version, client)
					before := len(store.namesSeen())
					send(c)
					c.expect(t, ack)
					c.Close()
					return store.namesSeen()[before:]
				}
				first := keyOf("!a", func(c *rawClient) { c.publish(t, qos, id, "sensors/s/m", "142") })
				if len(first) != 1 || first[0].Again || first[0].Long || first[0].Count != 1 {
					t.Fatalf("the first has the keys %+v", first)
				}
				if qos == 1 { // a repeat of QoS 2 is known to its session
					again := keyOf("!a", func(c *rawClient) { c.publishDup(t, qos, id, "sensors/s/m", "142") })
					want := first[0]
					want.Again = true
					if len(again) != 1 || again[0] != want {
						t.Errorf("the repeat has the keys %+v, want %+v", again, want)
					}
				}
				for name, other := range map[string][]touchline.Key{
					"another client": keyOf("!b", func(c *rawClient) { c.publish(t, qos, id, "sensors/s/m", "142") }),
					"another id":     keyOf("!a", func(c *rawClient) { c.publish(t, qos, id+1, "sensors/s/m", "142") }),
					"another topic":  keyOf("!a", func(c *rawClient) { c.publish(t, qos, id+2, "sensors/s/n", "142") }),
					"another value":  keyOf("!a", func(c *rawClient) { c.publish(t, qos, id+3, "sensors/s/m", "143") }),
				} {
					if len(other) != 1 || other[0].ID == first[0].ID && other[0].Body == first[0].Body {
						t.Errorf("%s has the keys %+v", name, other)
					}
				}
				for name, none := range map[string][]touchline.Key{
					"a low id":           keyOf("!c", func(c *rawClient) { c.publish(t, qos, 1, "sensors/s/m", "142") }),
					"a time of its own":  keyOf("!c", func(c *rawClient) { c.publish(t, qos, id, "sensors/s", `{"t":1600000000000000001,"m":142}`) }),
					"nothing to be kept": keyOf("!c", func(c *rawClient) { c.publish(t, qos, id+9, "sensors/s", `{"t":1600000000000000001,"m":1}`) }),
				} {
					if len(none) != 0 {
						t.Errorf("%s has the keys %+v", name, none)
					}
				}
				clean := keyOf("d", func(c *rawClient) { c.publishDup(t, qos, id, "sensors/s/m", "142") })
				if version == 4 && len(clean) > 0 || len(clean) == 1 && clean[0].Again {
					t.Errorf("a clean session has the keys %+v", clean)
				}
			})
		}
	}
}

func (s *memStore) namesSeen() []touchline.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]touchline.Key(nil), s.keys...)
}

func TestPost_TakesAnIdempotencyKey(t *testing.T) {
	store := newStore(t)
	in := newTestIntake(t, store)
	server := startHTTP(t, in, nil, new(logBuffer).logger())
	post := func(key, query, body string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+SamplesPath+query, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if key != "" {
			r.Header.Set("Idempotency-Key", key)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for i, request := range []struct{ key, query, body string }{
		{`"k"`, "?sensor=a", `{"x":1,"y":2}`},
		{`k`, "?sensor=a", `{"x":1,"y":2}`},
		{`k`, "?sensor=b", `{"x":1,"y":2}`},
		{`k`, "?sensor=a", `{"x":1,"y":3}`},
		{`l`, "?sensor=a", `{"x":1,"y":2}`},
	} {
		if status := post(request.key, request.query, request.body); status != http.StatusNoContent {
			t.Fatalf("request %d was answered %d", i, status)
		}
	}
	k := store.namesSeen()
	if len(k) != 5 || k[0] != k[1] || !k[0].Long || !k[0].Again || k[0].Count != 2 {
		t.Fatalf("keys %+v", k)
	}
	if k[2].ID != k[0].ID || k[2].Body == k[0].Body || k[3].ID != k[0].ID || k[3].Body == k[0].Body || k[4].ID == k[0].ID {
		t.Errorf("keys %+v", k)
	}
	if status := post("", "?sensor=a", `{"x":1}`); status != http.StatusNoContent || len(store.namesSeen()) != 5 {
		t.Errorf("without a key: %d, %d keys", status, len(store.namesSeen()))
	}
	if status := post(`"k`, "?sensor=a", `{"x":1}`); status != http.StatusBadRequest {
		t.Errorf("a bad key was answered %d", status)
	}
	store.mu.Lock()
	store.fail = fmt.Errorf("told by the store: %w", touchline.ErrKeyReused)
	store.mu.Unlock()
	if status := post("k", "?sensor=a", `{"x":1}`); status != http.StatusUnprocessableEntity {
		t.Errorf("a key that belongs to another body was answered %d", status)
	}
	s := in.Stats()
	if h := s.Transports[TransportHTTP]; h.Failed != 0 || s.Rejected[CauseKeyReused] != 1 {
		t.Errorf("%d failed, %d rejected for their key: want 0 and 1", h.Failed, s.Rejected[CauseKeyReused])
	}
}
