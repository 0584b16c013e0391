package cloud

import (
	"net/http"
	"strings"
	"testing"
)

// FuzzBearer reads credentials: what it takes is one word or more behind
// Bearer, given once.
func FuzzBearer(f *testing.F) {
	for _, text := range []string{"Bearer token", "bearer  token ", "Basic dTpw", "Bearer", "Bearer ", "", "Bearer \x00", "BEARER a b"} {
		f.Add(text, "arena-1", uint8(1))
		f.Add(text, strings.Repeat("ä", 300), uint8(2))
	}
	f.Fuzz(func(t *testing.T, authorization, gateway string, times uint8) {
		r := &http.Request{Header: http.Header{}}
		for range times % 3 {
			r.Header.Add("Authorization", authorization)
			r.Header.Add("X-Touchline-Gateway", gateway)
		}
		token, ok := bearer(r)
		if ok && (token == "" || times%3 != 1 || !strings.HasPrefix(strings.ToLower(authorization), "bearer ")) {
			t.Errorf("%q, %d times, gives %q", authorization, times%3, token)
		}
		_ = claimed(r)
	})
}
