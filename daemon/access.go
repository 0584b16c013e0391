package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"touchline"
	"touchline/credential"
	"touchline/sensors"
)

// openAccess reads who may come in.
func openAccess(c touchline.Config, logger *slog.Logger) (*sensors.Access, error) {
	s := &c.Sensors
	keys, err := credential.OpenSensorKeys(filepath.Join(c.Gateway.Data, credential.SensorKeysFile), logger)
	if err != nil {
		return nil, err
	}
	rules, err := accessRules(c)
	if err != nil {
		return nil, err
	}
	if !s.AllowAnonymous && s.Unknown == "refuse" && keys.Empty() {
		logger.Warn("no sensor can come in: sensors.allow_anonymous is false, and no sensor has a key; `touchline sensor add ID` makes one")
	}
	return sensors.NewAccess(sensors.AccessOptions{
		Keys: keys, Rules: rules, PerSensor: s.Limits.ConnectionsPerSensor,
		Limits: sensors.Limits{
			PerAddress: s.Limits.ConnectionsPerAddress, Handshakes: s.Limits.HandshakesPerSecond,
			Messages: s.Limits.MessagesPerSecond, Bytes: s.Limits.BytesPerSecond.Int(), Login: time.Duration(s.Limits.LoginTimeout),
			Receive: time.Duration(s.Limits.ReceiveTimeout), Write: time.Duration(s.Limits.WriteTimeout),
		},
	}, logger)
}

// accessRules returns what a reload may change of it.
func accessRules(c touchline.Config) (sensors.Rules, error) {
	list := make([]credential.Rule, len(c.Sensors.ACL))
	for i, r := range c.Sensors.ACL {
		list[i] = credential.Rule(r)
	}
	acl, err := credential.NewACL(list)
	if err != nil {
		return sensors.Rules{}, fmt.Errorf("sensors.acl: %w", err)
	}
	return sensors.Rules{ACL: acl, Anonymous: c.Sensors.AllowAnonymous, Hold: c.Sensors.Unknown == "hold"}, nil
}

// sensorTLS returns the settings of the listeners with TLS, and nil where there
// are none.
func sensorTLS(c touchline.Config, logger *slog.Logger) (*tls.Config, error) {
	s := &c.Sensors
	if s.MQTT.TLSListen == "" && s.HTTP.TLSListen == "" {
		return nil, nil
	}
	cert, key := s.TLS.CertFile, s.TLS.KeyFile
	if cert == "" {
		cert = filepath.Join(c.Gateway.Data, credential.ServerFile)
		key = cert
	}
	file, err := credential.OpenCertificateFile(cert, key, logger)
	if errors.Is(err, fs.ErrNotExist) && s.TLS.CertFile == "" {
		return nil, fmt.Errorf("sensors.tls: there is no certificate yet: `touchline sensor ca NAME…` makes one, or name your own in cert_file and key_file (%w)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("sensors.tls: %w", err)
	}
	config := credential.ServerTLS(file)
	config.NextProtos = []string{"http/1.1", "mqtt"} // WebSockets are HTTP/1.1, and its limits are the ones that hold
	return config, nil
}
