package cloud

import (
	"fmt"
	"strings"
	"time"
)

// selectors are the parameters of GET /v1/samples that select samples.
var selectors = []string{"gateway", "sensor", "metric", "from", "to"}

// NewQuery reads what a person typed: values of the parameters gateway,
// sensor, metric, from and to of GET /v1/samples, by name; an empty one selects
// all. A time may also be a day, which is its beginning in UTC, or have a space
// instead of the T. The error names the parameter.
func NewQuery(typed map[string]string) (Query, error) {
	var q Query
	var none *format
	for _, name := range selectors {
		value := typed[name]
		if value == "" {
			continue
		}
		if name == "from" || name == "to" {
			value = plainTime(value)
		}
		if err := setParameter(&q, &none, name, value); err != nil {
			return q, fmt.Errorf("%s: %w", name, err)
		}
	}
	if q.From != nil && q.To != nil && *q.From > *q.To {
		return q, fmt.Errorf("from: %s is after to", typed["from"])
	}
	return q, nil
}

func plainTime(s string) string {
	if day, err := time.Parse(time.DateOnly, s); err == nil {
		return day.Format(time.RFC3339)
	}
	return strings.Replace(s, " ", "T", 1)
}
