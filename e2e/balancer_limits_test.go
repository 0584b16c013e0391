package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestBalancer_RefusesInTheCloudsName has strangers at both load balancers: what
// they say of their address is dropped, too many handshakes are refused, and where
// no node is left the answer says so, each in the form that a gateway takes for
// the cloud's and not for a middlebox's.
func TestBalancer_RefusesInTheCloudsName(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(*cluster){
		"haproxy": func(c *cluster) { c.haproxy("(per_address) ge 300", "(per_address) ge 5") },
		"nginx":   func(c *cluster) { c.nginx("zone=per_address:10m rate=30r/s;", "zone=per_address:10m rate=1r/m;") },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, onSQLite(t), 1, "")
			c.startNodes(0)
			begin(c)
			let := 0
			for ; let < 1000; let++ {
				status, header, body := c.knock()
				if status == http.StatusTooManyRequests {
					refusal(t, header, body)
					break
				}
				if status != http.StatusUnauthorized {
					t.Fatalf("handshake %d of a stranger: %d %s", let+1, status, body)
				}
			}
			if let < 5 || let > 400 {
				t.Errorf("%d handshakes of one address were let through", let)
			}
			client := c.client()
			defer client.CloseIdleConnections()
			resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/healthz", c.port))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("what is no handshake is refused too: %s", resp.Status)
			}
			log := c.nodes[0].program.log.String()
			if !strings.Contains(log, "remote=127.0.0.1") || strings.Contains(log, "203.0.113.9") {
				t.Errorf("the node took a stranger's word for its address:\n%s", tail(log, 2000))
			}
		})
	}
}

func TestBalancer_SaysThatNoNodeIsLeft(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(*cluster){"haproxy": func(c *cluster) { c.haproxy() }, "nginx": func(c *cluster) { c.nginx() }} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, onSQLite(t), 1, "")
			c.startNodes(0)
			begin(c)
			c.nodes[0].program.kill()
			status, header, body := c.knock()
			if status != http.StatusServiceUnavailable {
				t.Fatalf("%d %s", status, body)
			}
			refusal(t, header, body)
		})
	}
}

// refusal holds what an answer in the cloud's name has.
func refusal(t *testing.T, header http.Header, body string) {
	t.Helper()
	if !strings.HasPrefix(header.Get("Content-Type"), "application/problem+json") || header.Get("Retry-After") == "" || !strings.Contains(body, `"detail"`) {
		t.Errorf("%v %s: want a problem document that says when to come again", header, body)
	}
}

// knock is the handshake of a stranger, who also lies about its address.
func (c *cluster) knock() (int, http.Header, string) {
	c.t.Helper()
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/v1/uplink", c.port), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
		"Sec-WebSocket-Protocol": "touchline.v1", "Authorization": "Bearer stranger", "X-Touchline-Gateway": "arena", "X-Forwarded-For": "203.0.113.9",
	} {
		req.Header.Set(name, value)
	}
	return c.do(req)
}

func (c *cluster) do(req *http.Request) (int, http.Header, string) {
	c.t.Helper()
	client := c.client()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}
