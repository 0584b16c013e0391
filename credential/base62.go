package credential

import (
	"crypto/rand"
	"hash/crc32"
	"strings"
)

// base62 has no character that a shell, a URL, a form or a double click
// takes for something else.
const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// secretLen characters of base62 are 43 × 5.954 = 256 bits.
const secretLen = 43

// checkLen characters of base62 hold a CRC-32: 62^6 = 5.7e10 > 2^32.
const checkLen = 6

// random62 returns n characters, each drawn evenly. crypto/rand never fails:
// it ends the program where the system has no randomness.
func random62(n int) string {
	out := make([]byte, 0, n)
	var buf [64]byte
	for len(out) < n {
		_, _ = rand.Read(buf[:])
		for _, b := range buf {
			const even = 256 / len(base62) * len(base62) // a byte above would favour the first characters
			if int(b) < even && len(out) < n {
				out = append(out, base62[int(b)%len(base62)])
			}
		}
	}
	return string(out)
}

// check62 returns the CRC-32 (IEEE) of s as checkLen characters. It finds
// typos; it proves nothing.
func check62(s string) string {
	sum := crc32.ChecksumIEEE([]byte(s))
	var out [checkLen]byte
	for i := checkLen - 1; i >= 0; i-- {
		out[i] = base62[sum%uint32(len(base62))]
		sum /= uint32(len(base62))
	}
	return string(out[:])
}

// is62 says whether s is n characters of base62.
func is62(s string, n int) bool {
	return len(s) == n && strings.Trim(s, base62) == ""
}
