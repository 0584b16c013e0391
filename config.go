package touchline

import (
	_ "embed"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"touchline/config"
)

// Defaults is config.toml: the settings of the gateway, documented, each with
// its default.
//
//go:embed config.toml
var Defaults []byte

// EnvPrefix begins the environment variables that override settings.
const EnvPrefix = "TOUCHLINE"

// Config is the gateway's settings. What each means, its unit and its default
// is written in config.toml only.
type Config struct {
	Gateway GatewayConfig `toml:"gateway"`
	Sensors SensorsConfig `toml:"sensors"`
	Buffer  BufferConfig  `toml:"buffer"`
	Uplink  UplinkConfig  `toml:"uplink"`
	Log     LogConfig     `toml:"log"`
}

// GatewayConfig is the table [gateway].
type GatewayConfig struct {
	ID   string `toml:"id"`
	Data string `toml:"data"`
}

// SensorsConfig is the table [sensors].
type SensorsConfig struct {
	AllowAnonymous bool            `toml:"allow_anonymous"`
	Unknown        string          `toml:"unknown"`
	Insecure       bool            `toml:"insecure"`
	MaxPayload     config.Size     `toml:"max_payload"`
	DedupeWindow   config.Duration `toml:"dedupe_window"`
	DedupeMemory   config.Size     `toml:"dedupe_memory"`
	MaxConnections int             `toml:"max_connections"`
	Limits         LimitsConfig    `toml:"limits"`
	TLS            TLSConfig       `toml:"tls"`
	ACL            []ACLConfig     `toml:"acl"`
	MQTT           MQTTConfig      `toml:"mqtt"`
	HTTP           HTTPConfig      `toml:"http"`
	Broker         []BrokerConfig  `toml:"broker"`
}

// LimitsConfig is the table [sensors.limits].
type LimitsConfig struct {
	ConnectionsPerAddress int             `toml:"connections_per_address"`
	HandshakesPerSecond   int             `toml:"handshakes_per_second"`
	ConnectionsPerSensor  int             `toml:"connections_per_sensor"`
	MessagesPerSecond     int             `toml:"messages_per_second"`
	BytesPerSecond        config.Size     `toml:"bytes_per_second"`
	LoginTimeout          config.Duration `toml:"login_timeout"`
	ReceiveTimeout        config.Duration `toml:"receive_timeout"`
	WriteTimeout          config.Duration `toml:"write_timeout"`
	IdleTimeout           config.Duration `toml:"idle_timeout"`
	Subscribers           int             `toml:"subscribers"`
	SubscriberQueue       int             `toml:"subscriber_queue"`
}

// TLSConfig is the table [sensors.tls].
type TLSConfig struct {
	CertFile string `toml:"cert_file"`
	KeyFile  string `toml:"key_file"`
}

// ACLConfig is one table [[sensors.acl]].
type ACLConfig struct {
	Sensor    string   `toml:"sensor"`
	Subscribe []string `toml:"subscribe"`
	PublishAs []string `toml:"publish_as"`
	Status    bool     `toml:"status"`
}

// MQTTConfig is the table [sensors.mqtt].
type MQTTConfig struct {
	Listen    string `toml:"listen"`
	TLSListen string `toml:"tls_listen"`
}

// HTTPConfig is the table [sensors.http].
type HTTPConfig struct {
	Listen    string      `toml:"listen"`
	TLSListen string      `toml:"tls_listen"`
	MaxBody   config.Size `toml:"max_body"`
	MaxHeader config.Size `toml:"max_header"`
}

// BrokerConfig is one table [[sensors.broker]].
type BrokerConfig struct {
	URL          string   `toml:"url"`
	Topics       []string `toml:"topics"`
	Username     string   `toml:"username"`
	PasswordFile string   `toml:"password_file"`
	ClientID     string   `toml:"client_id"`
}

// BufferConfig is the table [buffer].
type BufferConfig struct {
	MaxBytes       config.Size     `toml:"max_bytes"`
	MaxAge         config.Duration `toml:"max_age"`
	FreeReserve    config.Size     `toml:"free_reserve"`
	WhenFull       string          `toml:"when_full"`
	KeepStored     config.Duration `toml:"keep_stored"`
	CommitInterval config.Duration `toml:"commit_interval"`
	ImportKeys     []string        `toml:"import_keys"`
}

// UplinkConfig is the table [uplink].
type UplinkConfig struct {
	URLs          []string        `toml:"urls"`
	TokenFile     string          `toml:"token_file"`
	KeyMaxAge     config.Duration `toml:"key_max_age"`
	ReconnectMin  config.Duration `toml:"reconnect_min"`
	ReconnectMax  config.Duration `toml:"reconnect_max"`
	AcceptTimeout config.Duration `toml:"accept_timeout"`
	StoreTimeout  config.Duration `toml:"store_timeout"`
	ReturnAfter   config.Duration `toml:"return_after"`

	Proxy             string   `toml:"proxy"`
	ProxyPasswordFile string   `toml:"proxy_password_file"`
	Interface         string   `toml:"interface"`
	CAFile            string   `toml:"ca_file"`
	Pin               []string `toml:"pin"`
	ClientCert        string   `toml:"client_cert"`
	ClientKey         string   `toml:"client_key"`

	LiveFirst    bool        `toml:"live_first"`
	BacklogOrder string      `toml:"backlog_order"`
	BacklogShare int         `toml:"backlog_share"`
	BacklogHours string      `toml:"backlog_hours"`
	MaxRate      config.Size `toml:"max_rate"`
}

// LogConfig is the table [log].
type LogConfig struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

// LoadConfig reads the gateway's settings: flags (by key) before environment
// before file before defaults. It returns variables with the prefix that are
// no setting, and a *config.Error with everything that is wrong.
func LoadConfig(file string, environ []string, flags map[string]string) (Config, []string, error) {
	var c Config
	unused, err := config.Load(&c, config.Sources{
		Defaults: Defaults, File: file, EnvPrefix: EnvPrefix, Environ: environ, Flags: flags,
	})
	if err != nil {
		return Config{}, unused, err
	}
	if c.Gateway.ID == "" {
		if c.Gateway.ID, err = enrolledID(c.Gateway.Data); err != nil {
			return Config{}, unused, fmt.Errorf("gateway.id is empty, and the id that the cloud gave can't be read: %w", err)
		}
	}
	if c.Gateway.ID == "" {
		if c.Gateway.ID, err = os.Hostname(); err != nil {
			return Config{}, unused, fmt.Errorf("gateway.id is empty and the host name can't be read: %w", err)
		}
	}
	if err := CheckGateway(c.Gateway.ID); err != nil {
		return Config{}, unused, fmt.Errorf("gateway.id is empty, and the host name can't stand for it: %w", err)
	}
	return c, unused, nil
}

// Check implements config.Checker.
func (c *Config) Check(report func(key, problem string)) {
	if c.Gateway.ID != "" {
		if err := CheckGateway(c.Gateway.ID); err != nil {
			report("gateway.id", err.Error())
		}
	}
	if c.Gateway.Data == "" {
		report("gateway.data", "is empty: name a folder for the buffer")
	}
	c.Sensors.check(report)
	c.Buffer.check(report)
	c.Uplink.check(report)
	c.Log.Check("log", report)
}

func (c *SensorsConfig) check(report func(key, problem string)) {
	const maxPayload = 128 << 10 // fits a block whatever it holds
	if c.MaxPayload < 256 || c.MaxPayload > maxPayload {
		report("sensors.max_payload", fmt.Sprintf("%s is out of bounds: want 256B to 128KiB", c.MaxPayload))
	}
	if c.HTTP.MaxBody < 256 || c.HTTP.MaxBody > 16<<20 {
		report("sensors.http.max_body", fmt.Sprintf("%s is out of bounds: want 256B to 16MiB", c.HTTP.MaxBody))
	}
	if c.DedupeWindow < 0 || c.DedupeWindow > 600e9 {
		report("sensors.dedupe_window", fmt.Sprintf("%s is out of bounds: want at most 10m, or 0s to store what is sent twice", c.DedupeWindow))
	}
	if c.DedupeMemory < 128<<10 || c.DedupeMemory > 1<<30 {
		report("sensors.dedupe_memory", fmt.Sprintf("%s is out of bounds: want 128KiB to 1GiB", c.DedupeMemory))
	}
	if c.MaxConnections < 1 || c.MaxConnections > 100_000 {
		report("sensors.max_connections", fmt.Sprintf("%d is out of bounds: want 1 to 100000", c.MaxConnections))
	}
	if c.Unknown != "refuse" && c.Unknown != "hold" {
		report("sensors.unknown", fmt.Sprintf("%q is unknown: want \"refuse\" or \"hold\" (allow_anonymous = true lets everybody in)", c.Unknown))
	}
	if c.Unknown == "hold" && c.AllowAnonymous {
		report("sensors.unknown", "\"hold\" has nobody to hold while sensors.allow_anonymous is true: set that to false")
	}
	if c.HTTP.MaxHeader < 4<<10 || c.HTTP.MaxHeader > 1<<20 {
		report("sensors.http.max_header", fmt.Sprintf("%s is out of bounds: want 4KiB to 1MiB", c.HTTP.MaxHeader))
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		report("sensors.tls.cert_file", "and key_file go together: name both, or none of them for what `touchline sensor ca` made")
	}
	c.Limits.check(report)
	c.checkPace(report)
	c.checkListen("sensors.mqtt.listen", c.MQTT.Listen, report)
	c.checkListen("sensors.mqtt.tls_listen", c.MQTT.TLSListen, report)
	c.checkListen("sensors.http.listen", c.HTTP.Listen, report)
	c.checkListen("sensors.http.tls_listen", c.HTTP.TLSListen, report)
	for i, b := range c.Broker {
		key := fmt.Sprintf("sensors.broker[%d]", i)
		b.check(key, report)
		same := func(other BrokerConfig) bool { return other.URL == b.URL && other.ClientID == b.ClientID }
		if first := slices.IndexFunc(c.Broker, same); first < i {
			report(key+".client_id", fmt.Sprintf("sensors.broker[%d] has the same url and client_id: a broker keeps one connection for each; give this one another client_id", first))
		}
	}
}

func (c *LimitsConfig) check(report func(key, problem string)) {
	for _, l := range []struct {
		key         string
		value, most int
	}{
		{"connections_per_address", c.ConnectionsPerAddress, 100_000}, {"handshakes_per_second", c.HandshakesPerSecond, 1_000_000},
		{"connections_per_sensor", c.ConnectionsPerSensor, 100_000}, {"messages_per_second", c.MessagesPerSecond, 1_000_000_000},
		{"subscribers", c.Subscribers, 10_000}, {"subscriber_queue", c.SubscriberQueue, 10_000},
	} {
		if l.value < 1 || l.value > l.most {
			report("sensors.limits."+l.key, fmt.Sprintf("%d is out of bounds: want 1 to %d", l.value, l.most))
		}
	}
	if c.BytesPerSecond < 1<<10 || c.BytesPerSecond > 1<<40 {
		report("sensors.limits.bytes_per_second", fmt.Sprintf("%s is out of bounds: want 1KiB to 1TiB", c.BytesPerSecond))
	}
	for _, l := range []struct {
		key   string
		value config.Duration
		most  config.Duration
	}{
		{"login_timeout", c.LoginTimeout, 60e9}, {"receive_timeout", c.ReceiveTimeout, 600e9},
		{"write_timeout", c.WriteTimeout, 300e9}, {"idle_timeout", c.IdleTimeout, 3600e9},
	} {
		if l.value < 100e6 || l.value > l.most {
			report("sensors.limits."+l.key, fmt.Sprintf("%s is out of bounds: want 100ms to %s", l.value, l.most))
		}
	}
	const copyBytes, most = 17 << 10, 1 << 30 // 16 KiB of packet, and what the broker adds
	if held := int64(c.Subscribers) * int64(c.SubscriberQueue) * copyBytes; held > most && c.Subscribers <= 10_000 && c.SubscriberQueue <= 10_000 {
		report("sensors.limits.subscriber_queue", fmt.Sprintf("%d copies of up to 17KiB for each of %d subscribers are %dMiB: want at most 1024MiB",
			c.SubscriberQueue, c.Subscribers, held>>20))
	}
}

// checkPace finds what bytes_per_second would never let arrive in time: a
// payload or a body goes on for receive_timeout at the most.
func (c *SensorsConfig) checkPace(report func(key, problem string)) {
	most := float64(c.Limits.BytesPerSecond) * float64(c.Limits.ReceiveTimeout) / 1e9
	for _, l := range []struct {
		key   string
		value config.Size
	}{{"sensors.max_payload", c.MaxPayload}, {"sensors.http.max_body", c.HTTP.MaxBody}} {
		if float64(l.value) > most {
			report(l.key, fmt.Sprintf("%s can't arrive within sensors.limits.receive_timeout (%s) at sensors.limits.bytes_per_second (%s): raise one of these, or lower this to %s",
				l.value, c.Limits.ReceiveTimeout, c.Limits.BytesPerSecond, config.Size(most)))
		}
	}
}

func (c *SensorsConfig) checkListen(key, address string, report func(key, problem string)) {
	if address == "" {
		return
	}
	loopback, err := Loopback(address)
	if err != nil {
		report(key, err.Error())
	} else if !loopback && c.AllowAnonymous && !c.Insecure {
		report(key, fmt.Sprintf("%s is reachable from the network while sensors.allow_anonymous is true: "+
			"listen on 127.0.0.1, give sensors keys (`touchline sensor add`) and set allow_anonymous = false, or say insecure = true in [sensors]", address))
	}
}

func (b *BrokerConfig) check(key string, report func(key, problem string)) {
	u, err := url.Parse(b.URL)
	if err != nil || u.Host == "" || !slices.Contains([]string{"mqtt", "mqtts", "ws", "wss"}, u.Scheme) {
		report(key+".url", fmt.Sprintf("%q is no broker address: write such as \"mqtt://192.168.0.10:1883\" or \"mqtts://HOST:8883\"", b.URL))
	} else if u.User != nil {
		report(key+".url", "has a user or password in it: use username and password_file")
	}
	if len(b.Topics) == 0 {
		report(key+".topics", "is empty: name at least one topic filter, such as \"sensors/#\"")
	}
}

func (c *BufferConfig) check(report func(key, problem string)) {
	for _, s := range c.ImportKeys {
		if _, _, err := ParseTrust(s); err != nil {
			report("buffer.import_keys", err.Error())
		}
	}
	if c.MaxBytes < 1<<20 {
		report("buffer.max_bytes", fmt.Sprintf("%s is too little: want at least 1MiB", c.MaxBytes))
	}
	if c.WhenFull != "evict_oldest" && c.WhenFull != "refuse" {
		report("buffer.when_full", fmt.Sprintf("%q is unknown: want \"evict_oldest\" or \"refuse\"", c.WhenFull))
	}
	if c.MaxAge != 0 && c.MaxAge < 10e9 {
		report("buffer.max_age", fmt.Sprintf("%s is too short: want at least 10s, or 0s for never", c.MaxAge))
	}
	if c.KeepStored < 0 {
		report("buffer.keep_stored", fmt.Sprintf("%s is below nothing: want 0s or more", c.KeepStored))
	}
	if c.CommitInterval > 10e9 {
		report("buffer.commit_interval", fmt.Sprintf("%s is too long: a sensor waits that long for its acknowledgement; want at most 10s", c.CommitInterval))
	}
}

func (c *UplinkConfig) check(report func(key, problem string)) {
	for _, s := range c.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || (u.Scheme != "ws" && u.Scheme != "wss") {
			report("uplink.urls", fmt.Sprintf("%q is no address of a cloud: write such as \"wss://cloud.example.org\"", s))
		} else if u.User != nil {
			report("uplink.urls", "has a user or password in it: the token belongs into uplink.token_file")
		}
	}
	if c.KeyMaxAge != 0 && c.KeyMaxAge < 24*3600e9 {
		report("uplink.key_max_age", fmt.Sprintf("%s is too short: want at least 1d, or 0s for never", c.KeyMaxAge))
	}
	if c.ReconnectMin < 1e6 || c.ReconnectMax < c.ReconnectMin {
		report("uplink.reconnect_min", fmt.Sprintf("%s up to %s: want at least 1ms, and reconnect_max not below it", c.ReconnectMin, c.ReconnectMax))
	}
	if c.AcceptTimeout < 1e9 {
		report("uplink.accept_timeout", fmt.Sprintf("%s is too short: want at least 1s", c.AcceptTimeout))
	}
	if c.StoreTimeout < 1e9 {
		report("uplink.store_timeout", fmt.Sprintf("%s is too short: want at least 1s", c.StoreTimeout))
	}
	if c.ReturnAfter < 1e9 || c.ReturnAfter > 24*3600e9 {
		report("uplink.return_after", fmt.Sprintf("%s is out of bounds: want 1s to 24h", c.ReturnAfter))
	}
	c.checkNetwork(report)
	if c.BacklogOrder != "oldest" && c.BacklogOrder != "newest" {
		report("uplink.backlog_order", fmt.Sprintf("%q is unknown: want \"oldest\" or \"newest\"", c.BacklogOrder))
	}
	if c.BacklogShare < 1 || c.BacklogShare > 100 {
		report("uplink.backlog_share", fmt.Sprintf("%d is out of bounds: want 1 to 100, a percentage", c.BacklogShare))
	}
	if _, err := ParseHours(c.BacklogHours); err != nil {
		report("uplink.backlog_hours", err.Error()+", or \"\" for all day")
	}
	if c.MaxRate != 0 && c.MaxRate < 8<<10 {
		report("uplink.max_rate", fmt.Sprintf("%s is too little: want at least 8KiB a second, or 0B for no limit", c.MaxRate))
	}
}

func (c *UplinkConfig) checkNetwork(report func(key, problem string)) {
	if c.Proxy != "" && c.Proxy != "direct" {
		u, err := url.Parse(c.Proxy)
		if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
			report("uplink.proxy", "is no address of a proxy: write such as \"http://proxy.example:3128\" or \"socks5://proxy.example:1080\"")
		} else if u.User != nil {
			report("uplink.proxy", "has a user or password in it: put them into the file of uplink.proxy_password_file")
		}
	}
	if c.ProxyPasswordFile != "" && (c.Proxy == "" || c.Proxy == "direct") {
		report("uplink.proxy_password_file", "is set, and uplink.proxy names no proxy")
	}
	if (c.ClientCert == "") != (c.ClientKey == "") {
		report("uplink.client_cert", "and uplink.client_key go together: name both, or neither")
	}
}

// Check reports what is wrong with the table, whose key is given.
func (c *LogConfig) Check(key string, report func(key, problem string)) {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Level) {
		report(key+".level", fmt.Sprintf("%q is unknown: want \"debug\", \"info\", \"warn\" or \"error\"", c.Level))
	}
	if c.Format != "text" && c.Format != "json" {
		report(key+".format", fmt.Sprintf("%q is unknown: want \"text\" or \"json\"", c.Format))
	}
}

// Loopback says whether a listen address (HOST:PORT) is reachable from this
// machine only. A name other than localhost is taken to be reachable.
func Loopback(address string) (bool, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false, fmt.Errorf("%q is no address to listen on: write HOST:PORT, such as \"127.0.0.1:8080\"", address)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return false, fmt.Errorf("%q has no valid port: write HOST:PORT, such as \"127.0.0.1:8080\"", address)
	}
	if strings.EqualFold(host, "localhost") {
		return true, nil
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback(), nil
}
