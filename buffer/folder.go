package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"touchline/internal/folder"
)

// makeFolder makes dir and syncs its parent, so that it survives a power cut
// together with what is synced inside. Other users have no business with what
// athletes' sensors say: 0700.
func makeFolder(dir string) error {
	switch info, err := os.Stat(dir); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a folder", dir)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("look at folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	return folder.Sync(filepath.Dir(dir))
}
