package buffer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
)

func repeatOptions(t testing.TB) (Options, *testClock) {
	opts, clock := testOptions(t), new(testClock)
	opts.RepeatWindow, opts.RepeatBytes = 10*time.Second, 1<<20
	opts.clock = clock.elapsed
	return opts, clock
}

// send appends and wants an answer.
func send(t testing.TB, b *Buffer, a touchline.Arrival) error {
	t.Helper()
	result := make(chan error, 1)
	if err := b.AppendAsync(testContext(t), a, func(err error) { result <- err }); err != nil {
		t.Fatal(err)
	}
	return <-result
}

func TestAppend_StoresARepeatOnce(t *testing.T) {
	opts, clock := repeatOptions(t)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 10))
	twice := append(numbered(5, 10), numbered(5, 10)...) // 5 to 9 are there, 10 to 14 twice in one append
	mustAppend(t, b, twice)
	wantValues(t, b, upTo(15))
	if s := b.Stats(); s.Repeats != 15 || s.Appended != 15 || s.RepeatsByKey != 0 || s.RepeatWindowLen != 15 {
		t.Errorf("counted %d repeats and %d stored, want 15 and 15: %+v", s.Repeats, s.Appended, s)
	}
	clock.advance(opts.RepeatWindow)
	mustAppend(t, b, numbered(0, 1)) // just within
	wantValues(t, b, upTo(15))
	clock.advance(time.Millisecond)
	mustAppend(t, b, numbered(0, 1))
	wantValues(t, b, append(upTo(15), 0))
}

func TestAppend_StoresWhatIsNoRepeat(t *testing.T) {
	original := numbered(1, 1)[0]
	for name, change := range map[string]func(*touchline.Sample){
		"sensor":  func(s *touchline.Sample) { s.Sensor += "x" },
		"metric":  func(s *touchline.Sample) { s.Metric += "x" },
		"unit":    func(s *touchline.Sample) { s.Unit = "" },
		"time":    func(s *touchline.Sample) { s.Time-- },
		"value":   func(s *touchline.Sample) { s.Value = touchline.NumberValue(2) },
		"kind":    func(s *touchline.Sample) { s.Value = touchline.BoolValue(true) },
		"stamped": func(s *touchline.Sample) { s.Stamped = true },
	} {
		t.Run(name, func(t *testing.T) {
			opts, _ := repeatOptions(t)
			b := startBuffer(t, opts)
			other := original
			change(&other)
			mustAppend(t, b, []touchline.Sample{original, other})
			mustAppend(t, b, []touchline.Sample{original})
			if s := b.Stats(); s.Appended != 2 || s.Repeats != 1 {
				t.Errorf("%d stored and %d repeats, want 2 and 1", s.Appended, s.Repeats)
			}
		})
	}
	t.Run("off", func(t *testing.T) {
		opts, _ := repeatOptions(t)
		opts.RepeatWindow = 0
		b := startBuffer(t, opts)
		mustAppend(t, b, []touchline.Sample{original})
		mustAppend(t, b, []touchline.Sample{original})
		if s := b.Stats(); s.Appended != 2 || s.Repeats != 0 {
			t.Errorf("%d stored and %d repeats, want 2 and 0", s.Appended, s.Repeats)
		}
	})
	t.Run("both stamped", func(t *testing.T) {
		opts, _ := repeatOptions(t)
		b := startBuffer(t, opts)
		original.Stamped = true
		mustAppend(t, b, []touchline.Sample{original, original})
		if s := b.Stats(); s.Appended != 2 || s.RepeatWindowLen != 0 {
			t.Errorf("%d stored, %d in the window: want 2 and 0", s.Appended, s.RepeatWindowLen)
		}
	})
}

// A repeat that comes while its original is being committed is not answered
// before that commit, nor with success if it fails.
func TestAppend_AnswersARepeatWithItsOriginal(t *testing.T) {
	for _, fail := range []bool{false, true} {
		t.Run(fmt.Sprintf("fail=%t", fail), func(t *testing.T) {
			opts, _ := repeatOptions(t)
			hold := newGate("insert")
			opts.fault = hold.fault
			b := startBuffer(t, opts)
			answers := make(chan string, 2)
			appendOne := func(name string) {
				if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(1, 1)}, func(err error) {
					answers <- fmt.Sprint(name, " ", err == nil)
				}); err != nil {
					t.Fatal(err)
				}
			}
			appendOne("original")
			<-hold.reached
			appendOne("repeat")
			select {
			case early := <-answers:
				t.Fatalf("%s before the commit", early)
			default:
			}
			if !fail {
				hold.pass <- nil
				if first, second := <-answers, <-answers; first != "original true" || second != "repeat true" {
					t.Errorf("answered %q, then %q", first, second)
				}
			} else {
				hold.pass <- errors.New("injected: no")
				if first := <-answers; first != "original false" {
					t.Errorf("answered %q", first)
				}
				<-hold.reached // the repeat is stored: its original is not
				hold.pass <- nil
				if second := <-answers; second != "repeat true" {
					t.Errorf("answered %q", second)
				}
			}
			wantValues(t, b, []int{1})
			opts.fault = nil
		})
	}
}

// Whatever a failed commit left in the file, a sender that repeats until it is
// told success finds its samples there once.
func TestAppend_RepeatOfAFailedCommitIsThereOnce(t *testing.T) {
	broken := errors.New("injected: broken")
	for _, stage := range []string{"begin", "insert", "commit undone", "commit that took place"} {
		t.Run(stage, func(t *testing.T) {
			opts, _ := repeatOptions(t)
			var failures atomic.Int32
			var b *Buffer
			opts.fault = func(at string, err error) error {
				if failures.Load() == 0 || err != nil {
					return err
				}
				switch {
				case at == stage:
				case at == "commit" && stage == "commit that took place":
				case at == "commit" && stage == "commit undone":
					failures.Add(-1)
					return errors.Join(broken, undoLastCommit(b))
				default:
					return err
				}
				failures.Add(-1)
				return broken
			}
			b = openBuffer(t, opts)
			runBuffer(t, b)
			mustAppend(t, b, numbered(0, 3))
			key := touchline.Key{ID: touchline.DigestOf("k"), Count: 1, Again: true, Long: true}
			stamped := numbered(9, 1)
			stamped[0].Stamped = true
			failures.Store(1)
			if err := b.Append(testContext(t), numbered(0, 6)); err == nil {
				t.Fatal("a failed commit was answered with success")
			}
			for b.Append(testContext(t), numbered(0, 6)) != nil {
			}
			wantValues(t, b, upTo(6))
			failures.Store(1)
			if err := send(t, b, touchline.Arrival{Samples: stamped, Keys: []touchline.Key{key}}); err == nil {
				t.Fatal("a failed commit was answered with success")
			}
			for range 2 {
				for send(t, b, touchline.Arrival{Samples: stamped, Keys: []touchline.Key{key}}) != nil {
				}
			}
			wantValues(t, b, append(upTo(6), 9))
			if s := b.Stats(); s.Appended != 7 {
				t.Errorf("%d stored, want 7", s.Appended)
			}
		})
	}
}

// What was committed within the window before a restart is known after it,
// time switched off not counted; what was committed earlier is not.
func TestOpen_KnowsWhatWasStoredLast(t *testing.T) {
	opts, clock := repeatOptions(t)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 5))
	clock.advance(8 * time.Second)
	mustAppend(t, b, numbered(5, 5))
	clock.advance(3 * time.Second)
	mustAppend(t, b, numbered(10, 5))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Hour) // between the two
	b = startBuffer(t, opts)
	if s := b.Stats(); s.RepeatWindowLen != 10 {
		t.Errorf("%d samples are known after the start, want 10", s.RepeatWindowLen)
	}
	mustAppend(t, b, numbered(0, 15))
	wantValues(t, b, append(upTo(15), upTo(5)...)) // the first five came too late
}

// A window that has no room for all takes the youngest.
func TestOpen_KnowsTheYoungestWhereThereIsNoRoom(t *testing.T) {
	opts, _ := repeatOptions(t)
	opts.RepeatBytes = MinRepeatBytes
	b := startBuffer(t, opts)
	for i := range 20 {
		mustAppend(t, b, numbered(1000*i, 1000))
	}
	known := b.Stats().RepeatWindowLen
	if s := b.Stats(); known < 2000 || s.ForgottenEarly != uint64(20_000-known) {
		t.Errorf("%d samples of 20,000 are known, %d left the window early", known, s.ForgottenEarly)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = startBuffer(t, opts)
	mustAppend(t, b, numbered(18_000, 2000))
	if s := b.Stats(); s.Repeats != 2000 {
		t.Errorf("%d of 2,000 samples are repeats", s.Repeats)
	}
}

func TestAppend_StoresAMessageOnceUnderItsKey(t *testing.T) {
	a, b, c := touchline.DigestOf("a"), touchline.DigestOf("b"), touchline.DigestOf("c")
	type step struct {
		key    touchline.Key
		stored bool
		err    error
		reopen bool
		after  time.Duration
	}
	for name, steps := range map[string][]step{
		"again":               {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: a, Body: b, Again: true}}},
		"again after a start": {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: a, Body: b, Again: true}, reopen: true}},
		"not again":           {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: a, Body: b}, stored: true}},
		"never heard of":      {{key: touchline.Key{ID: a, Body: b, Again: true}, stored: true}, {key: touchline.Key{ID: a, Body: b, Again: true}}},
		"another body":        {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: a, Body: c, Again: true}, stored: true}},
		"another name":        {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: c, Body: b, Again: true}, stored: true}},
		"replaced":            {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: a, Body: c}, stored: true}, {key: touchline.Key{ID: a, Body: b, Again: true}, stored: true}},
		"replaced, and a start": {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: a, Body: c}, stored: true},
			{key: touchline.Key{ID: a, Body: c, Again: true}, reopen: true}},
		"too late":      {{key: touchline.Key{ID: a, Body: b}, stored: true}, {key: touchline.Key{ID: a, Body: b, Again: true}, after: 11 * time.Second, stored: true}},
		"long":          {{key: touchline.Key{ID: a, Body: b, Again: true, Long: true}, stored: true}, {key: touchline.Key{ID: a, Body: b, Again: true, Long: true}, after: 23 * time.Hour, reopen: true}},
		"long and late": {{key: touchline.Key{ID: a, Body: b, Again: true, Long: true}, stored: true}, {key: touchline.Key{ID: a, Body: b, Again: true, Long: true}, after: 25 * time.Hour, stored: true}},
		"long, another body": {{key: touchline.Key{ID: a, Body: b, Again: true, Long: true}, stored: true},
			{key: touchline.Key{ID: a, Body: c, Again: true, Long: true}, err: touchline.ErrKeyReused, reopen: true}},
	} {
		t.Run(name, func(t *testing.T) {
			opts, clock := repeatOptions(t)
			buffer := startBuffer(t, opts)
			want, repeats := 0, 0
			for i, step := range steps {
				clock.advance(step.after)
				if step.after > 0 {
					mustAppend(t, buffer, numbered(1000+i, 1)) // so that the file knows of the time
					want++
				}
				if step.reopen {
					if err := buffer.Close(); err != nil {
						t.Fatal(err)
					}
					buffer = startBuffer(t, opts)
				}
				// Three messages: the one in the middle has the key.
				samples := numbered(10*i, 4)
				for i := range samples {
					samples[i].Stamped = true
				}
				step.key.First, step.key.Count = 1, 2
				if err := send(t, buffer, touchline.Arrival{Samples: samples, Keys: []touchline.Key{step.key}}); !errors.Is(err, step.err) {
					t.Fatalf("step %d was answered %v, want %v", i, err, step.err)
				}
				want += 2
				switch {
				case step.stored:
					want += 2
				case step.err == nil:
					repeats = 2
				}
			}
			if s := buffer.Stats(); s.Samples != int64(want) || s.RepeatsByKey != uint64(repeats) {
				t.Errorf("%d samples are there, %d were repeats: want %d and %d", s.Samples, s.RepeatsByKey, want, repeats)
			}
		})
	}
}

// Rows of keys that are due are deleted when the next one is written.
func TestAppend_DeletesKeysThatAreDue(t *testing.T) {
	opts, clock := repeatOptions(t)
	b := startBuffer(t, opts)
	for i := range 50 {
		clock.advance(time.Second)
		for _, long := range []bool{false, true} {
			key := touchline.Key{ID: touchline.DigestOf(fmt.Sprint(i)), Count: 1, Long: long}
			if err := send(t, b, touchline.Arrival{Samples: numbered(2*i, 1), Keys: []touchline.Key{key}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBuffer(t, opts)
	var short, long int
	row := b.store.conn.QueryRowContext(context.Background(), "SELECT sum(n < 1 << 61), sum(n >= 1 << 61) FROM arrival")
	if err := row.Scan(&short, &long); err != nil || short > 13 || short < 10 || long != 50 {
		t.Errorf("%d short and %d long rows are left (%v), want some 11 and 50", short, long, err)
	}
	if got := b.w.repeats.keys.Len(); got < 60 || got > 62 {
		t.Errorf("%d keys are known, want 11 and 50", got)
	}
}

// A row of keys or a block that can't be read keeps no buffer from opening.
func TestOpen_LeavesOutKeysThatAreDamaged(t *testing.T) {
	opts, _ := repeatOptions(t)
	b := startBuffer(t, opts)
	key := touchline.Key{ID: touchline.DigestOf("k"), Count: 1, Again: true, Long: true}
	mustAppend(t, b, numbered(0, 5))
	if err := send(t, b, touchline.Arrival{Samples: numbered(5, 1), Keys: []touchline.Key{key}}); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"INSERT INTO arrival VALUES (7, 0, x'0102')", "INSERT INTO arrival VALUES (8, 0, x'')",
		"UPDATE block SET data = x'00' WHERE key = (SELECT min(key) FROM block)"} {
		if _, err := b.store.conn.ExecContext(context.Background(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := Open(testContext(t), opts, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.w.repeats.keys.Len() != 1 || b.w.repeats.window.Len() != 1 {
		t.Errorf("%d keys and %d samples are known, want 1 and 1", b.w.repeats.keys.Len(), b.w.repeats.window.Len())
	}
}
