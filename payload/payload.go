// Package payload decodes what sensors send and encodes what programs read:
// SenML in JSON and CBOR (RFC 8428), plain JSON objects and bare values. A
// Decoder either understands a payload whole or says what is wrong with it,
// where, and what to do; what it allocates is bounded by what it was given.
// It holds no resources, so there is nothing to end.
package payload

import (
	"fmt"

	"touchline"
)

// Format says how a payload is to be read.
type Format uint8

// The formats. Auto tells them apart by the first byte that is not white
// space: '[' begins SenML JSON, '{' a plain object, 0x80 to 0x9f (an array in
// CBOR, and never the beginning of UTF-8) SenML CBOR, and anything else is a
// bare value.
const (
	Auto Format = iota
	SenMLJSON
	SenMLCBOR
	Object
	Bare
)

// String returns the format's name as errors use it.
func (f Format) String() string {
	switch f {
	case Auto:
		return "payload"
	case SenMLJSON:
		return "SenML JSON"
	case SenMLCBOR:
		return "SenML CBOR"
	case Object:
		return "JSON object"
	case Bare:
		return "bare value"
	}
	return fmt.Sprintf("format %d", uint8(f))
}

// A Source says where a payload came from. It fills in what the payload does
// not say itself.
type Source struct {
	Sensor string // names the sensor where the payload doesn't; may be empty
	Metric string // names or prefixes the metric (see Decode); may be empty
	Now    int64  // time of arrival by the gateway's clock, ns since the Unix epoch
}

// Raw returns the sample that keeps a payload whole that could not be
// understood. It copies data.
func Raw(src Source, data []byte) touchline.Sample {
	return touchline.Sample{
		Sensor: src.Sensor,
		Metric: touchline.MetricRaw,
		Time:   src.Now,
		Value:  touchline.BytesValue(string(data)),

		Stamped: true,
	}
}
