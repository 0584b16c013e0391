package credential

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openKeys(t testing.TB, file string) *SensorKeys {
	t.Helper()
	k, err := OpenSensorKeys(file, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func add(t testing.TB, k *SensorKeys, sensor string) string {
	t.Helper()
	secret, err := k.Add(sensor, "")
	if err != nil {
		t.Fatal(err)
	}
	return secret.Reveal()
}

// wants holds what Check says of a sensor.
func wants(t testing.TB, k *SensorKeys, sensor, secret string, want Verdict) Login {
	t.Helper()
	got, login := k.Check(sensor, secret)
	if got != want {
		t.Errorf("sensor %q: %s, want %s", sensor, got, want)
	}
	if (login != Login{}) != (want == LetIn) || want == LetIn && !k.Admits(login) {
		t.Errorf("sensor %q: login %+v", sensor, login)
	}
	return login
}

// later lets so much time pass that the file is looked at again.
func later() { time.Sleep(lookInterval) }

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSensorKeys_TheLifeOfASensor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), SensorKeysFile)
		k := openKeys(t, file)
		wants(t, k, "belt", "x", UnknownSensor)
		wants(t, k, "belt", "", UnknownSensor)
		secret := add(t, k, "belt")
		login := wants(t, k, "belt", secret, LetIn)
		wants(t, k, "belt", secret+"x", WrongKey)
		wants(t, k, "belt", "", WrongKey)
		wants(t, k, "", "", UnknownSensor)
		wants(t, k, "belt", strings.Repeat("x", 1e6), WrongKey)
		wants(t, k, "Belt", secret, UnknownSensor)
		if _, err := k.Add("belt", ""); !errors.Is(err, ErrSensorExists) {
			t.Error("a second key:", err)
		}
		renewed, err := k.Renew("belt")
		if err != nil {
			t.Fatal(err)
		}
		wants(t, k, "belt", secret, WrongKey)
		if k.Admits(login) {
			t.Error("a connection with the old key is admitted")
		}
		secret = renewed.Reveal()
		login = wants(t, k, "belt", secret, LetIn)
		if err := k.Revoke("belt"); err != nil {
			t.Fatal(err)
		}
		wants(t, k, "belt", secret, IsRevoked)
		wants(t, k, "belt", "guess", WrongKey)
		if k.Admits(login) {
			t.Error("a revoked sensor is admitted")
		}
		if _, err := k.Renew("belt"); !errors.Is(err, ErrUnknownSensor) {
			t.Error("a revoked sensor got a new key:", err)
		}
		if err := k.Admit("belt"); err != nil {
			t.Fatal(err)
		}
		wants(t, k, "belt", secret, LetIn)
		again := openKeys(t, file)
		wants(t, again, "belt", secret, LetIn)
		if err := k.Remove("belt"); err != nil {
			t.Fatal(err)
		}
		wants(t, k, "belt", secret, UnknownSensor)
		later()
		wants(t, again, "belt", secret, UnknownSensor)
		for what, err := range map[string]error{"revoke": k.Revoke("belt"), "admit": k.Admit("belt"), "remove": k.Remove("belt")} {
			if !errors.Is(err, ErrUnknownSensor) {
				t.Errorf("%s a sensor that is not there: %v", what, err)
			}
		}
		if strings.Contains(read(t, file), secret) {
			t.Error("the file has a key in it")
		}
		if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
			t.Error("mode", info.Mode())
		}
	})
}

func TestSensorKeys_Quarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := openKeys(t, filepath.Join(t.TempDir(), SensorKeysFile))
		hold := func(sensor, secret string) {
			t.Helper()
			if err := k.Hold(sensor, secret); err != nil {
				t.Error(err)
			}
			time.Sleep(holdInterval)
		}
		hold("new", "its-own")
		wants(t, k, "new", "its-own", IsHeld)
		wants(t, k, "new", "another", WrongKey)
		hold("new", "another") // whoever was first keeps the name
		wants(t, k, "new", "its-own", IsHeld)
		hold("mute", "")
		wants(t, k, "mute", "", IsHeld)
		wants(t, k, "mute", "guess", IsHeld)
		if err := k.Admit("mute"); !errors.Is(err, ErrNoKeyShown) {
			t.Error("admitted without a key:", err)
		}
		if err := k.Admit("new"); err != nil {
			t.Fatal(err)
		}
		wants(t, k, "new", "its-own", LetIn)
		secret := add(t, k, "mute")
		wants(t, k, "mute", secret, LetIn)
		wants(t, k, "mute", "", WrongKey)
		if err := k.Revoke("new"); err != nil {
			t.Fatal(err)
		}
		hold("new", "other")
		wants(t, k, "new", "other", WrongKey)
		hold("refused", "x")
		if err := k.Revoke("refused"); err != nil {
			t.Fatal(err)
		}
		hold("refused", "y")
		wants(t, k, "refused", "x", IsRevoked)
		if err := k.Hold("a/b", "x"); err == nil {
			t.Error("a name that no sensor has is held")
		}
		list := k.List()
		if len(list) != 3 || list[0].Sensor != "mute" || list[1].Sensor != "new" || list[2].State != Revoked {
			t.Error(list)
		}
	})
}

func TestSensorKeys_StrangersCannotFillTheQuarantineFastNorForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), SensorKeysFile)
		var text strings.Builder
		for i := range maxHeld - 1 {
			fmt.Fprintf(&text, "s%d\theld\t2026-07-12T18:30:00Z\t-\n", i)
		}
		write(t, file, text.String())
		k := openKeys(t, file)
		if err := k.Hold("one", "x"); err != nil {
			t.Error(err)
		}
		if err := k.Hold("two", "x"); !errors.Is(err, ErrHoldLimit) {
			t.Error("two within a second:", err)
		}
		time.Sleep(holdInterval)
		before := read(t, file)
		if err := k.Hold("two", "x"); !errors.Is(err, ErrHoldLimit) || read(t, file) != before {
			t.Error("one too many:", err)
		}
		if err := k.Remove("s0"); err != nil {
			t.Fatal(err)
		}
		if err := k.Hold("two", "x"); err != nil {
			t.Error("there is room again:", err)
		}
	})
}

const goodHash = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // of "abc"

// Each way to damage a line: it is named, it locks its sensor out, and no
// other, and what can't be read is there after the next change.
func TestSensorKeys_DamageLocksOutOneSensor(t *testing.T) {
	good := "bad\tadmitted\t2026-07-12T18:30:00Z\t" + goodHash + "\tnote"
	for name, line := range map[string]string{
		"cut":                  good[:60],
		"state":                strings.Replace(good, "admitted", "admitte", 1),
		"revoked, flipped bit": strings.Replace(good, "admitted", "revokee", 1),
		"time":                 strings.Replace(good, "T18", " 18", 1),
		"hash letter":          strings.Replace(good, "ba78", "bx78", 1),
		"hash short":           strings.Replace(good, "ba78", "ba7", 1),
		"hash zero":            strings.Replace(good, goodHash, "sha256:"+strings.Repeat("0", 64), 1),
		"hash name":            strings.Replace(good, "sha256", "sha255", 1),
		"admitted, no hash":    strings.Replace(good, goodHash, "-", 1),
		"blanks for tabs":      strings.ReplaceAll(good, "\t", "  "),
		"a field more":         good + "\tx",
		"two lines as one":     good + good,
		"control character":    good + "\x1b[2J",
		"no UTF-8":             good + "\xff",
		"long note":            good + strings.Repeat("x", maxSensorNote),
		"twice":                good + "\n" + good,
		"twice, one revoked":   good + "\n" + strings.Replace(good, "admitted", "revoked", 1),
		"twice, first damaged": good[:60] + "\n" + good,
		"twice, last damaged":  good + "\n" + good[:60],
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), SensorKeysFile)
			other := "other\tadmitted\t2026-07-12T18:30:00Z\t" + goodHash
			write(t, file, "# a person's own words\n\n"+line+"\n"+other+"\r\nlast\tadmitted\t2026-07-12T18:30:00Z\t"+goodHash)
			var log bytes.Buffer
			k, err := OpenSensorKeys(file, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			if v, _ := k.Check("bad", "abc"); v != IsDamaged && v != UnknownSensor {
				t.Error(v)
			}
			wants(t, k, "other", "abc", LetIn)
			wants(t, k, "last", "abc", LetIn)
			problems := k.Problems()
			if len(problems) == 0 || problems[0].Line < 3 || problems[0].Line > 4 || !strings.Contains(log.String(), "line ") {
				t.Errorf("problems %v, log %s", problems, log.String())
			}
			for _, p := range problems {
				if !utf8.ValidString(p.Text) || strings.Contains(p.Text, "\x1b") {
					t.Errorf("a problem has raw bytes: %q", p.Text)
				}
			}
			if v, _ := k.Check("bad", "abc"); v == IsDamaged { // its name can be read
				if err := k.Hold("bad", "mine"); err != nil {
					t.Error(err)
				}
				wants(t, k, "bad", "mine", IsDamaged)
			}
			secret := add(t, k, "new")
			text := read(t, file)
			if !strings.HasPrefix(text, "# a person's own words\n\n"+line+"\n"+other+"\r\nlast\t") {
				t.Errorf("a change of another sensor rewrote what it had no business with:\n%s", text)
			}
			wants(t, openKeys(t, file), "new", secret, LetIn)
			if v, _ := k.Check("bad", "abc"); v == IsDamaged {
				mended := add(t, k, "bad")
				wants(t, k, "bad", mended, LetIn)
				if p := k.Problems(); len(p) != 0 {
					t.Error("after a new key:", p)
				}
			}
		})
	}
}

// The file is fed with every cut of itself and every byte flipped: the sensors
// on other lines stay, and nothing else is let in.
func TestSensorKeys_AnyByteOrCut(t *testing.T) {
	var text string
	names := []string{"one", "two", "three"}
	for _, name := range names {
		sum := sha256.Sum256([]byte("key of " + name))
		text += name + "\tadmitted\t2026-07-12T18:30:00Z\tsha256:" + hex.EncodeToString(sum[:]) + "\n"
	}
	tried := 0
	letIn := func(damaged string) (n int) {
		tried++
		k := &SensorKeys{begun: time.Now(), logger: quiet()}
		k.table.Store(parseSensorFile(damaged).table())
		k.looked.Store(int64(time.Hour))
		for _, name := range names {
			if v, _ := k.Check(name, "key of "+name); v == LetIn {
				n++
			}
		}
		return n
	}
	for cut := range text {
		if got, whole := letIn(text[:cut]), strings.Count(text[:cut], "\n"); got < whole {
			t.Fatalf("cut at %d: %d of %d are let in", cut, got, whole)
		}
		for bit := range 8 {
			b := []byte(text)
			b[cut] ^= 1 << bit
			want := len(names) - 1
			if text[cut] == '\n' {
				want-- // two lines are one
			}
			if got := letIn(string(b)); got < want {
				t.Fatalf("bit %d of byte %d flipped: %d are let in", bit, cut, got)
			}
		}
	}
	t.Logf("MEASURED %d damaged files of sensors' keys: no other sensor was locked out", tried)
}

func TestSensorKeys_SeesWhatOthersChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), SensorKeysFile)
		var log bytes.Buffer
		running, err := OpenSensorKeys(file, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		command := openKeys(t, file)
		secret := add(t, command, "belt")
		later()
		login := wants(t, running, "belt", secret, LetIn)
		if err := command.Revoke("belt"); err != nil {
			t.Fatal(err)
		}
		wants(t, running, "belt", secret, LetIn) // for less than a second
		later()
		wants(t, running, "belt", secret, IsRevoked)
		if running.Admits(login) {
			t.Error("it goes on to be admitted")
		}
		other := add(t, running, "other") // must not undo what the command did
		wants(t, running, "belt", secret, IsRevoked)
		later()
		wants(t, command, "other", other, LetIn)

		// The file can't be read: what was read before counts, and it is said once.
		saved := read(t, file)
		for name, breakIt := range map[string]func() error{
			"gone": func() error { return os.Remove(file) },
			"a folder": func() error {
				return errors.Join(os.Remove(file), os.Mkdir(file, 0o700))
			},
		} {
			log.Reset()
			if err := breakIt(); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				later()
				wants(t, running, "other", other, LetIn)
			}
			if p := running.Problems(); len(p) != 1 || strings.Count(log.String(), "level=ERROR") != 1 {
				t.Errorf("%s: problems %v, log:\n%s", name, p, log.String())
			}
			if _, err := running.Add("third", ""); err == nil {
				t.Errorf("%s: a change wrote a file that locks out all others", name)
			}
			if err := os.RemoveAll(file); err != nil {
				t.Fatal(err)
			}
			write(t, file, saved)
			later()
			wants(t, running, "other", other, LetIn)
			if p := running.Problems(); len(p) != 0 {
				t.Errorf("%s, and back: %v", name, p)
			}
		}
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		later()
		if p := running.Problems(); len(p) != 1 || !strings.Contains(p[0].Text, "chmod 600") {
			t.Error("a file that all can read:", p)
		}
	})
}

func TestOpenSensorKeys_FailsWhereTheFileCannotBeRead(t *testing.T) {
	if _, err := OpenSensorKeys(t.TempDir(), quiet()); err == nil {
		t.Error("a folder was opened")
	}
}

func TestSensorKeys_BoundedInNumber(t *testing.T) {
	file := filepath.Join(t.TempDir(), SensorKeysFile)
	writeManySensors(t, file, MaxSensorKeys+1)
	k := openKeys(t, file)
	wants(t, k, fmt.Sprint("sensor-", MaxSensorKeys-1), "abc", LetIn)
	wants(t, k, fmt.Sprint("sensor-", MaxSensorKeys), "abc", UnknownSensor)
	if p := k.Problems(); len(p) != 1 || p[0].Line != MaxSensorKeys+1 {
		t.Error(p)
	}
	if _, err := k.Add("one more", ""); err == nil {
		t.Error("one more was added")
	}
	write(t, file, strings.Repeat("x\n", 1000))
	if p := openKeys(t, file).Problems(); len(p) > maxLineProblems+1 {
		t.Error("problems are kept without bound:", len(p))
	}
}

func writeManySensors(t testing.TB, file string, n int) {
	t.Helper()
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "sensor-%d\tadmitted\t2026-07-12T18:30:00Z\t%s\n", i, goodHash)
	}
	write(t, file, text.String())
}

func TestSensorKeys_ConcurrentUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), SensorKeysFile)
	shared := []*SensorKeys{openKeys(t, file), openKeys(t, file)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	secrets := map[string]string{}
	const each = 10
	for w := range 8 {
		wg.Go(func() {
			k := shared[w%2]
			for i := range each {
				name := fmt.Sprintf("s%d-%d", w, i)
				secret, err := k.Add(name, "by worker")
				if err != nil {
					t.Error(err)
					return
				}
				if v, _ := k.Check(name, secret.Reveal()); v != LetIn {
					t.Errorf("%s: %s", name, v)
				}
				k.List()
				mu.Lock()
				secrets[name] = secret.Reveal()
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	k := openKeys(t, file)
	if len(k.List()) != 8*each {
		t.Errorf("%d sensors: a change undid another's", len(k.List()))
	}
	for name, secret := range secrets {
		wants(t, k, name, secret, LetIn)
	}
}

// A process that is killed while it changes the file leaves it as it was or as
// it should be: shown by killing one at whatever it does.
func TestSensorKeys_SurviveKill(t *testing.T) {
	if file := os.Getenv("TOUCHLINE_TEST_SENSOR_KEYS"); file != "" {
		k := openKeys(t, file)
		for i := 0; ; i++ {
			secret, err := k.Add(fmt.Sprintf("s%d", i), "")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("added s%d %s\n", i, secret.Reveal())
		}
	}
	kills := 10
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		kills = 200
	}
	added := 0
	for i := range kills {
		file := filepath.Join(t.TempDir(), SensorKeysFile)
		cmd := exec.Command(os.Args[0], "-test.run=^TestSensorKeys_SurviveKill$")
		cmd.Env = append(os.Environ(), "TOUCHLINE_TEST_SENSOR_KEYS="+file)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		secrets := map[string]string{}
		for len(secrets) < 3+7*i%50 {
			var name, secret string
			if _, err := fmt.Fscanf(out, "added %s %s\n", &name, &secret); err != nil {
				t.Fatal(err)
			}
			secrets[name] = secret
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		k := openKeys(t, file)
		if p := k.Problems(); len(p) != 0 {
			t.Error(p)
		}
		for name, secret := range secrets {
			wants(t, k, name, secret, LetIn)
		}
		add(t, k, "after") // no lock is left behind
		added += len(secrets)
	}
	t.Logf("MEASURED %d kills while keys were added: %d sensors were told theirs, all are let in", kills, added)
}

// A person with root's rights uses the commands of a gateway that runs as
// another user: what they write must stay readable to it.
func TestFiles_BelongToTheOwnerOfTheFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: files can't be given to anybody else")
	}
	const uid, gid = 12345, 12346
	folder := t.TempDir()
	if err := os.Chown(folder, uid, gid); err != nil {
		t.Fatal(err)
	}
	add(t, openKeys(t, filepath.Join(folder, SensorKeysFile)), "belt")
	ca, err := CreateCA(folder, CAOptions{Name: "x", Domains: LocalDomains, Networks: LocalNetworks})
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(folder, []string{"gateway.local"}); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(folder)
	if err != nil || len(files) != 5 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if s := info.Sys().(*syscall.Stat_t); s.Uid != uid || s.Gid != gid {
			t.Errorf("%s belongs to %d:%d", f.Name(), s.Uid, s.Gid)
		}
	}
}

// Any sequence of changes, by two processes, against a map.
func TestSensorKeys_Model(t *testing.T) {
	// Each step is two syncs of a real disk.
	checks := "25"
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		checks = "500"
	}
	was := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", checks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		file := filepath.Join(dir, fmt.Sprint(runs))
		a, err := OpenSensorKeys(file, quiet())
		if err != nil {
			t.Fatal(err)
		}
		type entry struct {
			state  SensorState
			secret string
		}
		model := map[string]entry{}
		name := rapid.SampledFrom([]string{"a", "b c", "ü", "~x"})
		expect := func(what string, err error, ok bool) {
			if (err == nil) != ok {
				t.Fatalf("%s: %v", what, err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n := name.Draw(t, "name")
				secret, err := a.Add(n, rapid.SampledFrom([]string{"", "a note", "# no comment"}).Draw(t, "note"))
				expect("add", err, model[n].state != Admitted)
				if err == nil {
					model[n] = entry{Admitted, secret.Reveal()}
				}
			},
			"renew": func(t *rapid.T) {
				n := name.Draw(t, "name")
				secret, err := a.Renew(n)
				expect("renew", err, model[n].state == Admitted)
				if err == nil {
					model[n] = entry{Admitted, secret.Reveal()}
				}
			},
			"revoke": func(t *rapid.T) {
				n := name.Draw(t, "name")
				e, known := model[n]
				expect("revoke", a.Revoke(n), known)
				if known {
					model[n] = entry{Revoked, e.secret}
				}
			},
			"hold": func(t *rapid.T) {
				n, secret := name.Draw(t, "name"), rapid.SampledFrom([]string{"", "s"}).Draw(t, "secret")
				a.lastHold = time.Time{}
				expect("hold", a.Hold(n, secret), true)
				if _, known := model[n]; !known {
					model[n] = entry{Held, secret}
				}
			},
			"admit": func(t *rapid.T) {
				n := name.Draw(t, "name")
				e := model[n]
				expect("admit", a.Admit(n), e.secret != "")
				if e.secret != "" {
					model[n] = entry{Admitted, e.secret}
				}
			},
			"remove": func(t *rapid.T) {
				n := name.Draw(t, "name")
				_, known := model[n]
				expect("remove", a.Remove(n), known)
				delete(model, n)
			},
			"reopen": func(t *rapid.T) {
				if a, err = OpenSensorKeys(file, quiet()); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				want := map[SensorState]Verdict{0: UnknownSensor, Held: IsHeld, Admitted: LetIn, Revoked: IsRevoked}
				for _, n := range []string{"a", "b c", "ü", "~x"} {
					e := model[n]
					expected := want[e.state]
					if e.state == Revoked && e.secret == "" {
						expected = WrongKey
					}
					if v, _ := a.Check(n, e.secret); v != expected {
						t.Fatalf("%q: %s, want %s", n, v, expected)
					}
				}
				if len(a.List()) != len(model) || len(a.Problems()) != 0 {
					t.Fatal(a.List(), a.Problems())
				}
			},
		})
	})
	t.Logf("MEASURED %d sequences of changes: the file agreed with the model", runs)
}

func FuzzSensorFile(f *testing.F) {
	f.Add("")
	f.Add(sensorFileHead + "belt\tadmitted\t2026-07-12T18:30:00Z\t" + goodHash + "\tnote\n")
	f.Add("a\theld\t2026-07-12T18:30:00+02:00\t-\r\na\theld\t2026-07-12T18:30:00Z\t-\nx")
	f.Add("a\theld\t0001-01-01T00:00:00+01:00\t-\nb\theld\t9999-12-31T23:30:00.5-01:00\t-\nc\theld\t2026-07-12T18:30:00.5Z\t-")
	f.Fuzz(func(t *testing.T, text string) {
		lines := parseSensorFile(text)
		before := lines.table()
		if _, named := before.sensors["new"]; named {
			return
		}
		if err := lines.set("new", &SensorKey{Sensor: "new", State: Held, Created: time.Unix(0, 0)}); err != nil {
			t.Fatal(err)
		}
		after := parseSensorFile(lines.text()).table()
		if len(after.sensors) != len(before.sensors)+1 || after.sensors["new"] == nil {
			t.Fatalf("%q became %q", text, lines.text())
		}
		for name, s := range before.sensors {
			if a := after.sensors[name]; (a == nil) != (s == nil) || s != nil && *a != *s {
				t.Fatalf("%q: sensor %q became %+v", text, name, a)
			}
			if s == nil {
				continue
			}
			line, err := s.line()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := parseSensorLine(line); err != nil || again != *s {
				t.Fatalf("%q: %+v, %v", line, again, err)
			}
		}
	})
}

func BenchmarkSensorKeys_Check(b *testing.B) {
	for _, n := range []int{500, MaxSensorKeys} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			file := filepath.Join(b.TempDir(), SensorKeysFile)
			writeManySensors(b, file, n)
			k := openKeys(b, file)
			b.ReportAllocs()
			for b.Loop() {
				if v, _ := k.Check("sensor-17", "abc"); v != LetIn {
					b.Fatal(v)
				}
			}
		})
	}
}

func BenchmarkSensorKeys_Reload(b *testing.B) {
	file := filepath.Join(b.TempDir(), SensorKeysFile)
	writeManySensors(b, file, MaxSensorKeys)
	k := openKeys(b, file)
	for b.Loop() {
		k.mu.Lock()
		if err := k.reload(); err != nil {
			b.Fatal(err)
		}
		k.mu.Unlock()
	}
}

func TestSensorKeys_AKeyAloneIsOfOneSensor(t *testing.T) {
	keys := openKeys(t, filepath.Join(t.TempDir(), SensorKeysFile))
	a, err := keys.Add("a", "")
	if err != nil {
		t.Fatal(err)
	}
	before := keys.Generation()
	b, err := keys.Add("b", "")
	if err != nil {
		t.Fatal(err)
	}
	if keys.Generation() == before {
		t.Error("a change is not seen by Generation")
	}
	if v, login := keys.CheckKey(a.Reveal()); v != LetIn || login.Sensor != "a" || !keys.Admits(login) {
		t.Errorf("a's key: %v %+v", v, login)
	}
	if v, login := keys.CheckKey(b.Reveal()); v != LetIn || login.Sensor != "b" {
		t.Errorf("b's key: %v %+v", v, login)
	}
	for _, wrong := range []string{"", "a", a.Reveal() + "x", strings.Repeat("x", 300)} {
		if v, login := keys.CheckKey(wrong); v != UnknownSensor || login.Sensor != "" {
			t.Errorf("%.20q: %v %+v", wrong, v, login)
		}
	}
	if err := keys.Revoke("a"); err != nil {
		t.Fatal(err)
	}
	if v, _ := keys.CheckKey(a.Reveal()); v != IsRevoked {
		t.Errorf("a's key after it was revoked: %v", v)
	}
	if !keys.Named("a") || keys.Named("c") || keys.Empty() {
		t.Error("Named or Empty is wrong")
	}
	// Somebody copied a line by hand: the key names no sensor.
	text, err := os.ReadFile(keys.file)
	if err != nil {
		t.Fatal(err)
	}
	table := parseSensorFile(string(text) + strings.ReplaceAll(string(text), "b\tadm", "c\tadm")).table()
	if name := table.byHash[sha256.Sum256([]byte(b.Reveal()))]; name != "" {
		t.Errorf("the key of two sensors is said to be %s's", name)
	}
}
