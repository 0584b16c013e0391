// Package credential is how each party of touchline shows who it is, and how
// the other side checks it: gateways to the cloud (Ed25519 keys, claim codes,
// handshake tokens, key rolls), people and programs to the cloud (API keys),
// and sensors to the gateway (keys, an ACL, TLS certificates of a local CA).
//
// It makes, parses and verifies; it opens no connection and starts no
// goroutine. What it is handed by a stranger is bounded before it is read, is
// compared in constant time where it is secret, and appears in no error. All
// formats are in FORMAT.md, byte by byte.
package credential
