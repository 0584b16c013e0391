package payload

import (
	"strings"

	"touchline"
)

// maxNames bounds each of the three tables: 4,096 names of at most 257 bytes
// (a sensor, a slash and a metric), with about 120 bytes of map and string
// headers each, are 1.6 MB. A table that is full is emptied, so that a sensor
// that invents names for hours costs no memory, and the names in use come
// back with their next sample.
const maxNames = 4096

// A name is a resolved SenML name, checked and split.
type name struct {
	sensor string // "" where the name doesn't say
	metric string
}

// names remembers what was checked, so that the hot path allocates no string
// and checks each name once.
type names struct {
	metrics map[string]string
	units   map[string]string
	senml   map[string]name
	sensor  string // the last that was checked
}

func newNames() names {
	return names{metrics: map[string]string{}, units: map[string]string{}, senml: map[string]name{}}
}

// checkSensor is touchline.CheckSensor, which it asks once for each run of
// payloads of one sensor.
func (n *names) checkSensor(sensor string) error {
	if sensor != "" && sensor == n.sensor {
		return nil
	}
	if err := touchline.CheckSensor(sensor); err != nil {
		return err
	}
	n.sensor = sensor
	return nil
}

func (n *names) metric(b []byte) (string, error) {
	if s, ok := n.metrics[string(b)]; ok {
		return s, nil
	}
	return remember(n.metrics, b, touchline.CheckMetric)
}

func (n *names) unit(b []byte) (string, error) {
	if len(b) == 0 {
		return "", nil
	}
	if s, ok := n.units[string(b)]; ok {
		return s, nil
	}
	return remember(n.units, b, touchline.CheckUnit)
}

func remember(table map[string]string, b []byte, check func(string) error) (string, error) {
	s := string(b)
	if err := check(s); err != nil {
		return "", err
	}
	if len(table) >= maxNames {
		clear(table)
	}
	table[s] = s
	return s, nil
}

// split returns the two parts of a resolved SenML name: sensor/metric at its
// first slash; a name without one is the metric.
func (n *names) split(b []byte) (name, error) {
	if known, ok := n.senml[string(b)]; ok {
		return known, nil
	}
	full := string(b)
	parts := name{metric: full}
	if sensor, metric, found := strings.Cut(full, "/"); found {
		if err := touchline.CheckSensor(sensor); err != nil {
			return name{}, err
		}
		parts = name{sensor, metric}
	}
	if err := touchline.CheckMetric(parts.metric); err != nil {
		return name{}, err
	}
	if len(n.senml) >= maxNames {
		clear(n.senml)
	}
	n.senml[full] = parts
	return parts, nil
}
