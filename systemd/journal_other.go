//go:build !unix

package systemd

import "os"

func streamOf(*os.File) string { return "" }
