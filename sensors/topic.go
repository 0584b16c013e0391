package sensors

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"touchline"
)

// topicRule is what a person is told whose topic names no sensor.
const topicRule = "publish to sensors/<sensor> or sensors/<sensor>/<metric>"

// parseTopic reads sensors/<sensor> and sensors/<sensor>/<metric>. metric is
// empty for the first.
func parseTopic(topic string) (sensor, metric string, err error) {
	rest, ok := strings.CutPrefix(topic, "sensors/")
	if !ok {
		return "", "", fmt.Errorf("topic %.80q is not one of a sensor: %s", topic, topicRule)
	}
	sensor, metric, hasMetric := strings.Cut(rest, "/")
	if err := touchline.CheckSensor(sensor); err != nil {
		return "", "", fmt.Errorf("topic %.80q: %w: %s", topic, err, topicRule)
	}
	if !hasMetric {
		return sensor, "", nil
	}
	if strings.Contains(metric, "/") {
		return "", "", fmt.Errorf("topic %.80q has more than three levels: %s", topic, topicRule)
	}
	if err := touchline.CheckMetric(metric); err != nil {
		return "", "", fmt.Errorf("topic %.80q: %w: %s", topic, err, topicRule)
	}
	return sensor, metric, nil
}

// foreignTopic maps any topic of a site's own broker to a sensor, so that two
// topics are never taken for one sensor and none is lost. sensors/<sensor> and
// sensors/<sensor>/<metric> mean here what they mean everywhere, as long as the
// sensor's name does not begin with ~. Any other topic is a sensor itself, and
// its name does: after the ~ its slashes become dots, and what is a dot already
// or no part of a name is written as %XX. building/hall is ~building.hall.
// Where that is longer than a name may be, its end is replaced by ~ and the
// first 128 bits of the topic's SHA-256, so that two such topics differ as
// surely as hashes do.
func foreignTopic(topic string) (sensor, metric string) {
	if sensor, metric, err := parseTopic(topic); err == nil && sensor[0] != '~' {
		return sensor, metric
	}
	return foreignName(topic), ""
}

// foreignName is the name of the sensor that a foreign topic is.
func foreignName(topic string) string {
	var b strings.Builder
	b.WriteByte('~')
	for i := 0; i < len(topic); {
		c := topic[i]
		r, size := utf8.DecodeRuneInString(topic[i:])
		switch {
		case c == '/':
			b.WriteByte('.')
		case unicode.IsControl(r) || strings.IndexByte(".%~+#", c) >= 0 || c >= utf8.RuneSelf && size == 1:
			for j := range size {
				fmt.Fprintf(&b, "%%%02X", topic[i+j])
			}
		default:
			b.WriteString(topic[i : i+size])
		}
		i += size
	}
	name := b.String()
	if len(name) > touchline.MaxNameBytes {
		const digest = 16
		sum := sha256.Sum256([]byte(topic))
		head := touchline.MaxNameBytes - 1 - 2*digest
		for !utf8.RuneStart(name[head]) {
			head-- // never half a character
		}
		name = name[:head] + "~" + hex.EncodeToString(sum[:digest])
	}
	return name
}
