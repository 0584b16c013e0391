//go:build !unix

package main

import "os"

// reloadSignal: nobody can ask here.
func reloadSignal() <-chan os.Signal { return nil }
