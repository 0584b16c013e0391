package credential

import "encoding/binary"

// transcript is what is signed or hashed: a context that names purpose and
// version, a zero byte, and each field after its length (4 bytes, big
// endian), so that no two lists of fields read the same.
func transcript(context string, fields ...[]byte) []byte {
	out := append([]byte(context), 0)
	for _, f := range fields {
		out = binary.BigEndian.AppendUint32(out, uint32(len(f)))
		out = append(out, f...)
	}
	return out
}
