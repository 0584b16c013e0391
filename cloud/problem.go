package cloud

import (
	"encoding/json"
	"net/http"
)

// problem answers with a problem document (RFC 9457), whose detail says to a
// person what is wrong and what to do.
func problem(w http.ResponseWriter, status int, detail string) {
	writeJSON(w, "application/problem+json", status, struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(status), status, detail})
}

func writeJSON(w http.ResponseWriter, contentType string, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic("BUG: marshal an answer: " + err.Error())
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	w.Write(append(data, '\n')) // an error is the reader's: it has left
}
