package sensors

import (
	"encoding/json"
	"errors"
	"fmt"

	"touchline"
	"touchline/payload"
)

// decodeJSON reads application/json: a plain object, a SenML pack, or a list
// of plain objects. A list is SenML where any of its objects has a label that
// makes it so; then what is wrong with it is said as of SenML, instead of
// taking a pack with a mistake for objects with strange metrics.
func decodeJSON(d *payload.Decoder, src payload.Source, body []byte) ([]touchline.Sample, error) {
	if !isList(body) {
		return d.Decode(nil, payload.Object, src, body)
	}
	samples, senmlErr := d.Decode(nil, payload.SenMLJSON, src, body)
	if senmlErr == nil {
		return samples, nil
	}
	var list []json.RawMessage
	if json.Unmarshal(body, &list) != nil || len(list) == 0 {
		return nil, senmlErr
	}
	for _, item := range list {
		var members map[string]json.RawMessage
		if json.Unmarshal(item, &members) != nil {
			return nil, senmlErr
		}
		for _, label := range senmlLabels {
			if _, ok := members[label]; ok {
				return nil, senmlErr
			}
		}
	}
	for i, item := range list {
		var err error
		if samples, err = d.Decode(samples, payload.Object, src, item); err != nil {
			var bad *payload.Error
			if errors.As(err, &bad) {
				bad.Offset = -1 // it counts from the object, not from the body
			}
			return nil, fmt.Errorf("object %d of the list: %w", i, err)
		}
	}
	return samples, nil
}

// senmlLabels are those that a list of plain objects does not have (RFC 8428,
// section 4.3); "t" and "u" are metrics and times of plain objects too.
var senmlLabels = []string{"n", "bn", "bt", "bu", "bv", "bs", "bver", "v", "vs", "vb", "vd", "s", "ut"}

func isList(body []byte) bool {
	for _, c := range body {
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return c == '['
	}
	return false
}
