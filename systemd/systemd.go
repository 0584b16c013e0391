// Package systemd is what the programs and systemd say to one another: the
// units as files, embedded byte for byte, so that what is in the repository is
// what is installed, and the protocol of sd_notify(3) and sd_listen_fds(3).
// Where no service manager listens nothing is said, and that is no error. It
// holds no state and starts nothing.
package systemd

import _ "embed"

// Gateway is touchline.service. ExecStart names the program without a path,
// so that systemd finds it in /usr/local/bin (touchline install) or /usr/bin
// (a package).
//
//go:embed touchline.service
var Gateway string

// Cloud is touchline-cloud.service.
//
//go:embed touchline-cloud.service
var Cloud string

// GatewayUser is touchline.conf of sysusers.d(5), by which systemd makes the
// user: for a package as it is installed, for an image as it boots.
//
//go:embed touchline.sysusers
var GatewayUser string
