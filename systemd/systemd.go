// Package systemd has the unit of the gateway as a file, embedded byte for
// byte: what is in the repository is what is installed.
package systemd

import _ "embed"

// Gateway is touchline.service. ExecStart names the program without a path,
// so that systemd finds it in /usr/local/bin (touchline install) or /usr/bin
// (a package).
//
//go:embed touchline.service
var Gateway string
