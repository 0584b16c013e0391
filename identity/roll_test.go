package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline/identity"
)

func made(t *testing.T, make func(string) (ed25519.PrivateKey, error), dir string) ed25519.PrivateKey {
	t.Helper()
	key, err := make(dir)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestPromote_KeepsTheOldKeyAndForgetsItWhenTold(t *testing.T) {
	dir := t.TempDir()
	first := made(t, identity.LoadOrMake, dir)
	if err := identity.Promote(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a next key: %v", err)
	}
	second := made(t, identity.MakeNext, dir)
	if again := made(t, identity.MakeNext, dir); !again.Equal(second) || second.Equal(first) {
		t.Error("the next key is not the same until it takes over")
	}
	if key := made(t, identity.Load, dir); !key.Equal(first) {
		t.Error("making the next key has changed the one in use")
	}
	for _, name := range []string{identity.FileName, identity.NextFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", name, info, err)
		}
	}
	at := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	if err := identity.Date(dir, identity.NextFile, at); err != nil {
		t.Fatal(err)
	}
	if err := identity.Promote(dir); err != nil {
		t.Fatal(err)
	}
	if key, old := made(t, identity.Load, dir), made(t, identity.LoadOld, dir); !key.Equal(second) || !old.Equal(first) {
		t.Error("the keys have not changed places")
	}
	if since, err := identity.Made(dir, identity.FileName); err != nil || !since.Equal(at) {
		t.Errorf("the key was made at %s %v, want %s", since, err, at)
	}
	if info, err := os.Stat(filepath.Join(dir, identity.OldFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the old key: %v %v, want mode 0600", info, err)
	}
	for range 2 {
		if err := identity.ForgetOld(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := identity.LoadOld(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old key is still there: %v", err)
	}
}

// TestPromote_NeedsNoRoomForTheOldKey: the cloud knows the new key by then.
func TestPromote_NeedsNoRoomForTheOldKey(t *testing.T) {
	dir := t.TempDir()
	made(t, identity.LoadOrMake, dir)
	second := made(t, identity.MakeNext, dir)
	if err := os.Mkdir(filepath.Join(dir, identity.OldFile), 0o700); err != nil { // nothing can be renamed over it
		t.Fatal(err)
	}
	if err := identity.Promote(dir); err != nil {
		t.Fatal(err)
	}
	if key := made(t, identity.Load, dir); !key.Equal(second) {
		t.Error("the new key is not in use")
	}
}

// TestPromote_NeverTakesUpWhatItCantRead: the key in use would be gone.
func TestPromote_NeverTakesUpWhatItCantRead(t *testing.T) {
	dir := t.TempDir()
	first := made(t, identity.LoadOrMake, dir)
	next := filepath.Join(dir, identity.NextFile)
	damaged := []byte("-----BEGIN PRIVATE KEY-----\nMC4CAQ")
	if err := os.WriteFile(next, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.MakeNext(dir); err == nil || !strings.Contains(err.Error(), next) {
		t.Errorf("a damaged next key: %v, want an error that names the file", err)
	}
	if err := identity.Promote(dir); err == nil || !strings.Contains(err.Error(), next) {
		t.Errorf("a damaged next key is taken up: %v", err)
	}
	if key := made(t, identity.Load, dir); !key.Equal(first) {
		t.Error("the key in use has changed")
	}
	if text, err := os.ReadFile(next); err != nil || !bytes.Equal(text, damaged) {
		t.Errorf("what can't be read was changed: %v", err)
	}
}

func TestLock_IsOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	unlock, err := identity.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Lock(dir); !errors.Is(err, identity.ErrRolling) {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	unlock, err = identity.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestLock_RemovesWhatAKilledProcessLeft: it may be most of a private key.
func TestLock_RemovesWhatAKilledProcessLeft(t *testing.T) {
	dir := t.TempDir()
	made(t, identity.LoadOrMake, dir)
	made(t, identity.MakeNext, dir)
	for _, name := range []string{identity.NextFile, identity.OldFile} {
		if err := os.WriteFile(filepath.Join(dir, name+".4711.part"), []byte("-----BEGIN PRIVATE KEY"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := identity.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	var names []string
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{identity.FileName, identity.FileName + ".lock", identity.NextFile}; err != nil || !slices.Equal(names, want) {
		t.Errorf("the folder holds %q %v, want %q", names, err, want)
	}
}

func TestMakeNext_IsOneKeyForAll(t *testing.T) {
	dir := t.TempDir()
	keys := make([]ed25519.PrivateKey, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = identity.MakeNext(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if !k.Equal(keys[0]) {
			t.Fatal("two were made")
		}
	}
}
