package daemon

import "testing"

func TestWriteBytes_TakesTheLineOfTheDisk(t *testing.T) {
	for text, want := range map[string]uint64{
		"rchar: 5\nwchar: 6\nsyscr: 1\nsyscw: 1\nread_bytes: 0\nwrite_bytes: 81920\ncancelled_write_bytes: 7\n": 81920,
		"write_bytes: 0\n": 0,
	} {
		if got, ok := writeBytes([]byte(text)); !ok || got != want {
			t.Errorf("%q: %d %v, want %d", text, got, ok, want)
		}
	}
	// What is not known is not 0.
	for _, text := range []string{"", "wchar: 6\n", "write_bytes: many\n", "cancelled_write_bytes: 7\n"} {
		if got, ok := writeBytes([]byte(text)); ok {
			t.Errorf("%q: %d was taken for a count", text, got)
		}
	}
}
