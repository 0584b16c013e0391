package identity

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"touchline/internal/filelock"
	"touchline/internal/folder"
)

// A gateway changes its key in steps, each durable before the next begins, so
// that a power cut between two of them leaves one that the cloud knows:
//
//	MakeNext   the new key is on disk, in NextFile; nobody knows it
//	           (the cloud is told, and confirms it: both keys count there)
//	Promote    what was the key is in OldFile, and the new one in FileName
//	ForgetOld  once the old one counts nowhere
//
// Each step may be repeated. The old key is kept for a cloud that is restored
// from a backup: it does not know the new one, and only the old one can tell it.
const (
	NextFile = FileName + ".next"
	OldFile  = FileName + ".old"
)

// lockName is of the file that keeps two processes from rolling at a time.
const lockName = FileName + ".lock"

// ErrRolling says that another process is rolling the key.
var ErrRolling = errors.New("another process is rolling the gateway's key: wait for its end")

// Lock keeps other processes from changing the key until unlock is called, or
// this process ends, and removes what one left that was killed as it wrote. It
// does not wait: its error is ErrRolling where another one has the lock.
func Lock(dir string) (unlock func(), err error) {
	f, err := folder.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock gateway key: %w", err)
	}
	if err = filelock.Try(f); errors.Is(err, filelock.ErrLocked) {
		err = ErrRolling
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock gateway key: %w", err), f.Close())
	}
	for _, name := range []string{NextFile, OldFile} {
		if err := folder.Tidy(filepath.Join(dir, name)); err != nil {
			return nil, errors.Join(fmt.Errorf("lock gateway key: %w", err), f.Close())
		}
	}
	return func() { _ = f.Close() }, nil
}

// LoadNext returns the key that is to take over, LoadOld the one that was
// replaced last. Where there is none the error is os.ErrNotExist.
func LoadNext(dir string) (ed25519.PrivateKey, error) { return load(dir, NextFile) }

// LoadOld is described at LoadNext.
func LoadOld(dir string) (ed25519.PrivateKey, error) { return load(dir, OldFile) }

// MakeNext returns the key that is to take over, and makes it where there is
// none: it is the same until Promote.
func MakeNext(dir string) (ed25519.PrivateKey, error) { return loadOrMake(dir, NextFile) }

// Promote makes the next key the gateway's key, and keeps the one that it
// replaces as the old one, where there is room for it. Where there is no next key the error is
// os.ErrNotExist. The caller has the lock.
func Promote(dir string) error {
	if _, err := LoadNext(dir); err != nil { // what can't be read is no key to go on with
		return err
	}
	path := filepath.Join(dir, FileName)
	text, err := os.ReadFile(path)
	if err == nil {
		err = folder.Replace(filepath.Join(dir, OldFile), text, 0o600)
	}
	if err != nil { // on a full disk, say: the key that the cloud knows is worth more, and its name needs no room
		if err := ForgetOld(dir); err != nil { // that is an older one
			return err
		}
	}
	if err := errors.Join(os.Rename(filepath.Join(dir, NextFile), path), folder.Sync(dir)); err != nil {
		return fmt.Errorf("take up new gateway key: %w", err)
	}
	return nil
}

// ForgetOld removes the old key, if there is one.
func ForgetOld(dir string) error {
	if err := os.Remove(filepath.Join(dir, OldFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget old gateway key: %w", err)
	}
	return nil
}

// Made returns when one of the key files was made: its time of modification,
// which a rename keeps. For OldFile it is when it was replaced.
func Made(dir, name string) (time.Time, error) {
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return time.Time{}, fmt.Errorf("read age of gateway key: %w", err)
	}
	return info.ModTime(), nil
}

// Date corrects what Made returns, for a key that was made before anybody knew
// what time it was.
func Date(dir, name string, at time.Time) error {
	if err := os.Chtimes(filepath.Join(dir, name), time.Time{}, at); err != nil {
		return fmt.Errorf("note age of gateway key: %w", err)
	}
	return nil
}
