package buffer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Nothing is acknowledged into a file that nobody can open again, and Run ends.
func TestAppend_RefusesWhereTheFileIsGone(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"database removed": func(dir string) error { return os.Remove(filepath.Join(dir, databaseName)) },
		"log removed":      func(dir string) error { return os.Remove(filepath.Join(dir, databaseName+"-wal")) },
		"folder moved":     func(dir string) error { return os.Rename(dir, dir+"-away") },
		"database replaced": func(dir string) error {
			other := filepath.Join(dir, "other")
			return errors.Join(os.WriteFile(other, nil, 0o600), os.Rename(other, filepath.Join(dir, databaseName)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts := testOptions(t)
			opts.Dir = filepath.Join(opts.Dir, "data")
			b, err := Open(testContext(t), opts, testLogger(t))
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- b.Run(context.Background()) }()
			mustAppend(t, b, numbered(0, 10))
			if err := remove(opts.Dir); err != nil {
				t.Fatal(err)
			}
			var gone *GoneError
			if err := b.Append(testContext(t), numbered(10, 10)); !errors.As(err, &gone) {
				t.Errorf("samples were taken: %v", err)
			}
			if err := <-ended; !errors.As(err, &gone) {
				t.Errorf("Run ended with %v", err)
			}
			if s := b.Stats(); s.State != StateError || s.LastError == "" {
				t.Errorf("state %s, %q", s.State, s.LastError)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			b, err = Open(testContext(t), opts, testLogger(t))
			if err != nil {
				t.Fatalf("started again: %v", err)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
