package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline"
)

func TestStoreID_IsKeptWholeOrAnError(t *testing.T) {
	dir := t.TempDir()
	if id, err := knownStore(dir); id != "" || err != nil {
		t.Errorf("an empty folder: %q %v", id, err)
	}
	for _, want := range []string{"store-1", strings.Repeat("x", maxStoreID)} {
		if err := keepStore(dir, want); err != nil {
			t.Fatal(err)
		}
		if id, err := knownStore(dir); id != want || err != nil {
			t.Errorf("kept %q, read %q %v", want, id, err)
		}
	}
	for _, bad := range []string{"", "two words", "a\nb", strings.Repeat("x", maxStoreID+1)} {
		if err := keepStore(dir, bad); err == nil {
			t.Errorf("%q is kept", bad)
		}
	}
	for _, damaged := range []string{"", "\x00\x00", strings.Repeat("x", 10_000)} {
		if err := os.WriteFile(filepath.Join(dir, storeFile), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := knownStore(dir); err == nil || !strings.Contains(err.Error(), "accept-store") {
			t.Errorf("a damaged file: %q %v", id, err)
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Errorf("%d files are left (%v), want one", len(list), err)
	}
}

// A stopped gateway is told in its folder, and needs the id.
func TestAcceptStore_OfAStoppedGateway(t *testing.T) {
	c := touchline.Config{Gateway: touchline.GatewayConfig{ID: "g1", Data: t.TempDir()}}
	f, err := OpenFolder(c)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.AcceptStore(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "name the store's id") {
		t.Errorf("without an id: %v", err)
	}
	if id, err := f.AcceptStore(t.Context(), "store-2"); err != nil || id != "store-2" {
		t.Errorf("accepted %q %v", id, err)
	}
	if id, err := knownStore(c.Gateway.Data); err != nil || id != "store-2" {
		t.Errorf("kept %q %v", id, err)
	}
}

func TestNetwork_ThePasswordComesFromItsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "proxy")
	if err := os.WriteFile(file, []byte("venue:p:4 %word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &touchline.UplinkConfig{Proxy: "http://proxy.example:3128", ProxyPasswordFile: file}
	n, err := network(c)
	if err != nil || n.Proxy != "http://venue:p%3A4%20%25word@proxy.example:3128" {
		t.Errorf("proxy %q %v", n.Proxy, err)
	}
	if err := os.WriteFile(file, []byte("onlyasecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := network(c); err == nil || strings.Contains(err.Error(), "onlyasecret") {
		t.Errorf("a file without a user: %v", err)
	}
}
