package cloud

import (
	_ "embed"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"touchline"
	"touchline/cloud/tracing"
	"touchline/config"
	"touchline/wire"
)

// Defaults is cloud.toml: the settings of the cloud, documented, each with
// its default.
//
//go:embed cloud.toml
var Defaults []byte

// Config is the cloud's settings. What each means, its unit and its default
// is written in cloud.toml only.
type Config struct {
	Listen       string              `toml:"listen"`
	Data         string              `toml:"data"`
	Store        string              `toml:"store"`
	InsecureRead bool                `toml:"insecure_read"`
	MaxGateways  int                 `toml:"max_gateways"`
	MaxQueries   int                 `toml:"max_queries"`
	Heartbeat    config.Duration     `toml:"heartbeat"`
	Window       WindowConfig        `toml:"window"`
	Queue        QueueConfig         `toml:"queue"`
	Limits       LimitsConfig        `toml:"limits"`
	Live         LiveConfig          `toml:"live"`
	TLS          TLSConfig           `toml:"tls"`
	Log          touchline.LogConfig `toml:"log"`
	Balancer     BalancerConfig      `toml:"balancer"`
	Rollups      RollupsConfig       `toml:"rollups"`
	Tracing      TracingConfig       `toml:"tracing"`

	StorePasswordFile string   `toml:"store_password_file"`
	StoreKeepDays     int      `toml:"store_keep_days"`
	StoreUnsynced     bool     `toml:"store_unsynced"`
	TrustedProxies    []string `toml:"trusted_proxies"`
}

// LimitsConfig is the table [limits].
type LimitsConfig struct {
	Handshakes         int `toml:"handshakes"`
	GatewayHandshakes  int `toml:"gateway_handshakes"`
	AddressConnections int `toml:"address_connections"`
	SpareConnections   int `toml:"spare_connections"`

	MaxHeader      config.Size     `toml:"max_header"`
	LoginTimeout   config.Duration `toml:"login_timeout"`
	HelloTimeout   config.Duration `toml:"hello_timeout"`
	FramesTimeout  config.Duration `toml:"frames_timeout"`
	ArchiveTimeout config.Duration `toml:"archive_timeout"`
	WriteTimeout   config.Duration `toml:"write_timeout"`
	AnswerTimeout  config.Duration `toml:"answer_timeout"`
	IdleTimeout    config.Duration `toml:"idle_timeout"`
}

// BalancerConfig is the table [balancer].
type BalancerConfig struct {
	AgentListen string          `toml:"agent_listen"`
	DrainDelay  config.Duration `toml:"drain_delay"`
	Drain       config.Duration `toml:"drain"`
	MaxAge      config.Duration `toml:"max_age"`
	ShedAbove   int             `toml:"shed_above"`
}

// TracingConfig is the table [tracing].
type TracingConfig struct {
	Endpoint string  `toml:"endpoint"`
	Ratio    float64 `toml:"ratio"`
}

// LiveConfig is the table [live].
type LiveConfig struct {
	Viewers        int             `toml:"viewers"`
	Series         int             `toml:"series"`
	Lookback       config.Duration `toml:"lookback"`
	Bus            string          `toml:"bus"`
	BusCredentials string          `toml:"bus_credentials"`
	BusCA          string          `toml:"bus_ca"`
}

func (l *LiveConfig) check(report func(key, problem string)) {
	if l.Bus != "" {
		checkNATS("live.bus", l.Bus, "empty", report)
	} else if l.BusCredentials != "" || l.BusCA != "" {
		report("live.bus", "is empty, and live.bus_credentials and live.bus_ca are for it")
	}
}

// checkNATS checks a list of addresses that may have a password in it, which it does
// not show. instead is what else may stand there.
func checkNATS(key, list, instead string, report func(key, problem string)) {
	for _, text := range strings.Split(list, ",") {
		u, err := url.Parse(strings.TrimSpace(text))
		switch {
		case err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls":
			report(key, "is neither "+instead+" nor a list of addresses such as nats://A,nats://B,nats://C")
		case u.User != nil:
			report(key, fmt.Sprintf("has a user or a password in it: put them into a .creds file, and name that in %s_credentials", key))
		}
	}
}

// RollupsConfig is the table [rollups].
type RollupsConfig struct {
	Enabled        bool `toml:"enabled"`
	SecondKeepDays int  `toml:"second_keep_days"`
	MinuteKeepDays int  `toml:"minute_keep_days"`
}

// check wants time for what a gateway with a clock that is off by a day sends.
func (r *RollupsConfig) check(report func(key, problem string)) {
	for key, days := range map[string]int{"second_keep_days": r.SecondKeepDays, "minute_keep_days": r.MinuteKeepDays} {
		if days != 0 && (days < 2 || days > 36_500) {
			report("rollups."+key, fmt.Sprintf("%d is out of bounds: want 2 to 36500, or 0 to keep all", days))
		}
	}
}

// TLSConfig is the table [tls].
type TLSConfig struct {
	Cert     string `toml:"cert"`
	Key      string `toml:"key"`
	ClientCA string `toml:"client_ca"`

	ClientCertHeader string `toml:"client_cert_header"`
}

// WindowConfig is the table [window].
type WindowConfig struct {
	Bytes  config.Size `toml:"bytes"`
	Blocks int         `toml:"blocks"`
}

// QueueConfig is the table [queue].
type QueueConfig struct {
	Bytes           config.Size     `toml:"bytes"`
	NATS            string          `toml:"nats"`
	NATSCredentials string          `toml:"nats_credentials"`
	NATSCA          string          `toml:"nats_ca"`
	NATSMonitors    []string        `toml:"nats_monitors"`
	NATSConfirmed   bool            `toml:"nats_confirmed"`
	Replicas        int             `toml:"replicas"`
	Shards          int             `toml:"shards"`
	MaxBytes        config.Size     `toml:"max_bytes"`
	MaxAge          config.Duration `toml:"max_age"`
	Record          bool            `toml:"record"`
	AccessFor       config.Duration `toml:"access_for"`
	RecordListen    string          `toml:"record_listen"`
}

// EmbeddedQueue is what queue.nats says for a server in this process.
const EmbeddedQueue = "embedded"

// check never shows what nats is: it may have a password in it.
func (q *QueueConfig) check(report func(key, problem string)) {
	elsewhere := q.NATS != "" && q.NATS != EmbeddedQueue
	if elsewhere {
		checkNATS("queue.nats", q.NATS, `empty, "embedded"`, report)
		if len(q.NATSMonitors) == 0 && !q.NATSConfirmed {
			report("queue.nats_monitors", "is empty: want the monitoring addresses of all servers, where it is checked that they sync before they accept; "+
				"or queue.nats_confirmed = true where you have seen sync_interval: always in the settings of each")
		}
	}
	for _, text := range q.NATSMonitors {
		if u, err := url.Parse(text); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			report("queue.nats_monitors", "has an entry that is no address such as http://10.0.0.5:8222")
		}
	}
	if !elsewhere && (q.NATSCredentials != "" || q.NATSCA != "" || len(q.NATSMonitors) > 0) {
		report("queue.nats", "names no cluster, and nats_credentials, nats_ca and nats_monitors are for one")
	}
	if !elsewhere && q.Replicas != 1 {
		report("queue.replicas", fmt.Sprintf("is %d: only a cluster (queue.nats) has more than 1", q.Replicas))
	}
	if q.Replicas != 1 && q.Replicas != 3 && q.Replicas != 5 {
		report("queue.replicas", fmt.Sprintf("is %d: want 1, 3 or 5", q.Replicas))
	}
	if q.NATS == EmbeddedQueue && !q.Record {
		report("queue.record", "is false: nobody else can record from a queue that is embedded in this process")
	}
	if q.Shards < 1 || q.Shards > 64 {
		report("queue.shards", fmt.Sprintf("is %d: want 1 to 64", q.Shards))
	}
	if q.MaxBytes < 16<<20 {
		report("queue.max_bytes", fmt.Sprintf("is %s: want at least 16MiB", q.MaxBytes))
	}
	if q.RecordListen != "" {
		if _, err := touchline.Loopback(q.RecordListen); err != nil {
			report("queue.record_listen", err.Error())
		}
	}
	if q.AccessFor < 0 || q.AccessFor > config.Duration(maxAccessFor) {
		report("queue.access_for", fmt.Sprintf("%s is out of bounds: want 0s to %s", time.Duration(q.AccessFor), maxAccessFor))
	}
	if q.MaxAge < config.Duration(10*time.Minute) {
		report("queue.max_age", fmt.Sprintf("is %s: want at least 10m", time.Duration(q.MaxAge)))
	}
}

// LoadConfig reads the cloud's settings: flags (by key) before environment
// before file before defaults. It returns variables with the prefix that are
// no setting, and a *config.Error with everything that is wrong.
func LoadConfig(file string, environ []string, flags map[string]string) (Config, []string, error) {
	var c Config
	unused, err := config.Load(&c, config.Sources{
		Defaults: Defaults, File: file, EnvPrefix: touchline.EnvPrefix, Environ: environ, Flags: flags,
	})
	return c, unused, err
}

// Check implements config.Checker.
func (c *Config) Check(report func(key, problem string)) {
	if _, err := touchline.Loopback(c.Listen); err != nil {
		report("listen", err.Error())
	}
	if c.Data == "" {
		report("data", "is empty: name a folder for the record store")
	}
	c.checkStore(report)
	c.Queue.check(report)
	c.Live.check(report)
	bounds := func(key string, v, low, high int64, show func(int64) string) {
		if v < low || v > high {
			report(key, fmt.Sprintf("%s is out of bounds: want %s to %s", show(v), show(low), show(high)))
		}
	}
	number := func(n int64) string { return fmt.Sprint(n) }
	size := func(n int64) string { return config.Size(n).String() }
	duration := func(n int64) string { return time.Duration(n).String() }
	bounds("max_gateways", int64(c.MaxGateways), 1, 100_000, number)
	bounds("max_queries", int64(c.MaxQueries), 1, 1024, number)
	bounds("heartbeat", int64(c.Heartbeat), int64(time.Second), int64(maxHeartbeat), duration)
	bounds("window.bytes", int64(c.Window.Bytes), wire.MaxBlockBytes, 256<<20, size)
	bounds("window.blocks", int64(c.Window.Blocks), 1, maxWindowBlocks, number)
	bounds("queue.bytes", int64(c.Queue.Bytes), max(1<<20, int64(c.Window.Bytes)), 4<<30, size)
	bounds("limits.handshakes", int64(c.Limits.Handshakes), 1, 100_000, number)
	bounds("limits.gateway_handshakes", int64(c.Limits.GatewayHandshakes), 1, 1_000_000, number)
	bounds("limits.address_connections", int64(c.Limits.AddressConnections), 1, 1_000_000, number)
	bounds("limits.spare_connections", int64(c.Limits.SpareConnections), 1, 100_000, number)
	bounds("limits.max_header", int64(c.Limits.MaxHeader), minHeaderBytes, 1<<20, size)
	timeout := func(key string, d config.Duration) {
		bounds("limits."+key, int64(d), int64(100*time.Millisecond), int64(maxTimeout), duration)
	}
	timeout("login_timeout", c.Limits.LoginTimeout)
	timeout("hello_timeout", c.Limits.HelloTimeout)
	timeout("frames_timeout", c.Limits.FramesTimeout)
	timeout("archive_timeout", c.Limits.ArchiveTimeout)
	timeout("write_timeout", c.Limits.WriteTimeout)
	timeout("answer_timeout", c.Limits.AnswerTimeout)
	timeout("idle_timeout", c.Limits.IdleTimeout)
	bounds("balancer.drain_delay", int64(c.Balancer.DrainDelay), 0, int64(maxDrainDelay), duration)
	bounds("balancer.drain", int64(c.Balancer.Drain), 0, int64(maxDrain), duration)
	if c.Balancer.MaxAge != 0 {
		bounds("balancer.max_age", int64(c.Balancer.MaxAge), int64(time.Minute), int64(maxMaxAge), duration)
	}
	if c.Balancer.ShedAbove != 0 {
		bounds("balancer.shed_above", int64(c.Balancer.ShedAbove), minShedAbove, maxShedAbove, number)
	}
	if c.Balancer.AgentListen != "" {
		if _, err := touchline.Loopback(c.Balancer.AgentListen); err != nil {
			report("balancer.agent_listen", err.Error())
		}
	}
	bounds("live.viewers", int64(c.Live.Viewers), 0, 10_000, number)
	bounds("live.series", int64(c.Live.Series), 1, 1_000_000, number)
	bounds("live.lookback", int64(c.Live.Lookback), 0, int64(maxLookback), duration)
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		report("tls.cert", "and tls.key: set both, or none for no TLS")
	}
	if c.TLS.ClientCA != "" && c.TLS.Cert == "" && c.TLS.ClientCertHeader == "" {
		report("tls.client_ca", "needs tls.cert and tls.key, or tls.client_cert_header where a load balancer has them")
	}
	if err := checkHeaderName(c.TLS.ClientCertHeader); err != nil {
		report("tls.client_cert_header", err.Error())
	}
	if c.TLS.ClientCertHeader != "" && (c.TLS.ClientCA == "" || len(c.TrustedProxies) == 0) {
		report("tls.client_cert_header", "needs tls.client_ca, by which the certificates are checked, and trusted_proxies, who are believed")
	}
	for _, text := range c.TrustedProxies {
		if _, err := prefix(text); err != nil {
			report("trusted_proxies", fmt.Sprintf("%.60q is neither an address nor a network such as 10.0.0.0/8", text))
		}
	}
	c.Rollups.check(report)
	if c.Tracing.Endpoint != "" {
		if err := tracing.CheckEndpoint(c.Tracing.Endpoint); err != nil {
			report("tracing.endpoint", err.Error())
		}
	}
	if !(c.Tracing.Ratio >= 0 && c.Tracing.Ratio <= 1) {
		report("tracing.ratio", fmt.Sprintf("%v is out of bounds: want 0 to 1", c.Tracing.Ratio))
	}
	c.Log.Check("log", report)
}

// checkStore never shows what store is: it may have a password in it.
func (c *Config) checkStore(report func(key, problem string)) {
	const want = "want postgres://USER@HOST/DATABASE"
	u, err := url.Parse(c.Store)
	secret := false
	if err == nil {
		_, secret = u.User.Password()
		secret = secret || u.Query().Has("password")
	}
	switch {
	case c.Store == "" && c.StorePasswordFile != "":
		report("store_password_file", "is for PostgreSQL, and store is empty")
	case c.Store == "" && c.StoreUnsynced:
		report("store_unsynced", "is for PostgreSQL, and store is empty")
	case c.Store == "" && c.StoreKeepDays != 0:
		report("store_keep_days", "is for PostgreSQL, and store is empty: SQLite keeps all")
	case c.Store == "":
	case err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql":
		report("store", "is no address of a PostgreSQL database: "+want)
	case secret:
		report("store", "has a password in it: put it alone into a file that only touchline-cloud can read, and name that in store_password_file; "+want)
	}
	if c.StoreKeepDays < 0 || c.StoreKeepDays > 36_500 {
		report("store_keep_days", fmt.Sprintf("%d is out of bounds: want 0 to 36500", c.StoreKeepDays))
	}
}

// Options are the settings as a Server takes them.
func (c *Config) Options() Options {
	o := Options{
		Listen:        c.Listen,
		InsecureRead:  c.InsecureRead,
		MaxGateways:   c.MaxGateways,
		WindowBytes:   c.Window.Bytes.Int(),
		WindowBlocks:  c.Window.Blocks,
		MaxFrameBytes: frameBytes,
		QueueBytes:    c.Queue.Bytes.Int(),
		Heartbeat:     time.Duration(c.Heartbeat),
		MaxQueries:    c.MaxQueries,
		AccessFor:     time.Duration(c.Queue.AccessFor),

		Handshakes:         c.Limits.Handshakes,
		GatewayHandshakes:  c.Limits.GatewayHandshakes,
		AddressConnections: c.Limits.AddressConnections,
		SpareConnections:   c.Limits.SpareConnections,
		MaxHeaderBytes:     c.Limits.MaxHeader.Int(),
		Timeouts: Timeouts{
			Login: time.Duration(c.Limits.LoginTimeout), Hello: time.Duration(c.Limits.HelloTimeout), Frames: time.Duration(c.Limits.FramesTimeout),
			Archive: time.Duration(c.Limits.ArchiveTimeout), Write: time.Duration(c.Limits.WriteTimeout),
			Answer: time.Duration(c.Limits.AnswerTimeout), Idle: time.Duration(c.Limits.IdleTimeout),
		},
		CertFile:         c.TLS.Cert,
		KeyFile:          c.TLS.Key,
		ClientCA:         c.TLS.ClientCA,
		ClientCertHeader: c.TLS.ClientCertHeader,
		AgentListen:      c.Balancer.AgentListen,
		DrainDelay:       time.Duration(c.Balancer.DrainDelay),
		Drain:            time.Duration(c.Balancer.Drain),
		MaxAge:           time.Duration(c.Balancer.MaxAge),
		ShedAbove:        c.Balancer.ShedAbove,
		StoreUnsynced:    c.StoreUnsynced,
		MaxViewers:       c.Live.Viewers,
		ViewerSeries:     c.Live.Series,
		LiveLookback:     time.Duration(c.Live.Lookback),
	}
	if c.Store == "" || c.Queue.NATS == EmbeddedQueue {
		o.Data = c.Data
	}
	for _, text := range c.TrustedProxies {
		if p, err := prefix(text); err == nil { // Check names those that are none
			o.TrustedProxies = append(o.TrustedProxies, p)
		}
	}
	return o
}

// prefix reads a network, or an address as the network that is it alone.
func prefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr.Unmap().Prefix(addr.Unmap().BitLen())
	}
	return netip.ParsePrefix(text)
}

// frameBytes is the largest frame that welcome offers: the least that the
// protocol allows holds some 100,000 samples, and a larger one would only
// cost memory.
const frameBytes = wire.MinFrameBytes
