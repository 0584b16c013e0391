//go:build manual

package main

import (
	"fmt"
	"os"

	"touchline"
	"touchline/cloud"
	"touchline/internal/manual"
)

// Built with this tag the program writes its manual pages into the folder named,
// and does nothing else.
func init() {
	pages := manual.Program{Command: command(), Version: touchline.Version, File: "touchline-cloud.toml", Settings: cloud.Defaults}
	if err := pages.Write(os.Args[len(os.Args)-1]); err != nil {
		fmt.Fprintln(os.Stderr, "touchline-cloud:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
