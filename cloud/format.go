package cloud

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"touchline"
	"touchline/payload"
)

// A format is how samples are written for readers. Numbers are in their
// shortest form that reads back as the same float64 (payload.AppendFloat), and
// everywhere NaN, +Inf and -Inf where they are that; of a NaN's payload nothing
// is told.
type format struct {
	contentType         string
	begin, between, end string
	// appendRow appends r to dst, or returns a *formError.
	appendRow func(dst []byte, r *Record) ([]byte, error)
	// replaced is the format of answers that have what masks hide, where it is
	// another.
	replaced *format
}

// A formError says that a format has no form for a sample.
type formError struct{ reason string }

func (e *formError) Error() string { return e.reason }

var formats = map[string]*format{
	// CSV by RFC 4180, with a line feed alone at the end of a line, as the tools
	// of this trade have it. A text is as it is, a boolean true or false, bytes
	// are base64; the column does not tell the text "1" from the number 1, JSON does.
	// clock is empty where the time can be trusted, and else a Note.
	"csv": {
		contentType: "text/csv; charset=utf-8",
		begin:       "time_unix_ns,gateway,sensor,metric,unit,value,clock\n",
		appendRow:   appendCSV,
		// The number of the mask, or nothing, in a column that is there where it is asked for.
		replaced: &format{
			contentType: "text/csv; charset=utf-8",
			begin:       "time_unix_ns,gateway,sensor,metric,unit,value,clock,replaced_by\n",
			appendRow:   appendReplacedCSV,
		},
	},
	// JSON: one array of objects. The time is RFC 3339 to the nanosecond, since
	// most readers of JSON would round an integer of that size. kind is number,
	// text, boolean or bytes; bytes are base64, numbers that aren't finite strings.
	"json": {
		contentType: "application/json",
		begin:       "[\n", between: ",\n", end: "\n]\n",
		appendRow: appendJSON,
	},
	// SenML (RFC 8428): one pack, each record resolved, with the gateway as a
	// member of its own, which readers of SenML ignore, and so with the clock's
	// note where there is one. A number that isn't finite
	// is a text (vs), since JSON has no form for it.
	"senml": {
		contentType: "application/senml+json",
		begin:       "[\n", between: ",\n", end: "\n]\n",
		appendRow: appendSenML,
	},
}

func appendReplacedCSV(dst []byte, r *Record) ([]byte, error) {
	dst, err := appendCSV(dst, r)
	if err != nil {
		return dst, err
	}
	dst[len(dst)-1] = ','
	if r.ReplacedBy != 0 {
		dst = strconv.AppendUint(dst, r.ReplacedBy, 10)
	}
	return append(dst, '\n'), nil
}

// appendReplacedBy says which mask hides r, where one does.
func appendReplacedBy(dst []byte, r *Record) []byte {
	if r.ReplacedBy == 0 {
		return dst
	}
	return strconv.AppendUint(append(dst, `,"replaced_by":`...), r.ReplacedBy, 10)
}

func appendCSV(dst []byte, r *Record) ([]byte, error) {
	dst = strconv.AppendInt(dst, r.Time, 10)
	for _, field := range [...]string{r.Gateway, r.Sensor, r.Metric, r.Unit} {
		dst = AppendCSVField(append(dst, ','), field)
	}
	dst = append(dst, ',')
	switch v := r.Value; v.Kind() {
	case touchline.Number:
		dst = payload.AppendFloat(dst, v.Float())
	case touchline.Bool:
		dst = strconv.AppendBool(dst, v.Bool())
	case touchline.Text:
		dst = AppendCSVField(dst, v.Text())
	case touchline.Bytes:
		dst = base64.StdEncoding.AppendEncode(dst, []byte(v.Text()))
	}
	dst = append(dst, ',')
	dst = append(dst, r.Clock.String()...)
	return append(dst, '\n'), nil
}

// AppendCSVField appends a field of CSV: it quotes what RFC 4180 wants quoted,
// and spaces at the ends, which some readers trim.
func AppendCSVField(dst []byte, s string) []byte {
	if !strings.ContainsAny(s, "\",\r\n") && !strings.HasPrefix(s, " ") && !strings.HasSuffix(s, " ") {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}

func appendJSON(dst []byte, r *Record) ([]byte, error) {
	dst = append(dst, `{"time":"`...)
	dst = time.Unix(0, r.Time).UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, '"')
	dst = appendMember(dst, "gateway", r.Gateway)
	dst = appendMember(dst, "sensor", r.Sensor)
	dst = appendMember(dst, "metric", r.Metric)
	dst = appendMember(dst, "unit", r.Unit)
	dst = appendMember(dst, "kind", r.Value.Kind().String())
	switch v := r.Value; v.Kind() {
	case touchline.Number:
		dst = append(dst, `,"value":`...)
		if finite(v.Float()) {
			dst = payload.AppendFloat(dst, v.Float())
		} else {
			dst = append(payload.AppendFloat(append(dst, '"'), v.Float()), '"')
		}
	case touchline.Bool:
		dst = strconv.AppendBool(append(dst, `,"value":`...), v.Bool())
	case touchline.Text:
		dst = appendMember(dst, "value", v.Text())
	case touchline.Bytes:
		dst = append(dst, `,"value":"`...)
		dst = append(base64.StdEncoding.AppendEncode(dst, []byte(v.Text())), '"')
	}
	return append(appendReplacedBy(appendMember(dst, "clock", r.Clock.String()), r), '}'), nil
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

func appendMember(dst []byte, name, value string) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, '"', ':')
	return appendString(dst, value)
}

// appendString appends s as a JSON string; what is not UTF-8 becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic("BUG: marshal a string: " + err.Error())
			}
			return append(dst, quoted...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// firstSenMLTime is 2^28 s: SenML takes what is below for relative to now
// (RFC 8428, section 4.5.3).
const firstSenMLTime = (1 << 28) * int64(time.Second)

// appendSenML writes r as a pack of one record, without the brackets: such
// records make one pack, since none depends on another.
func appendSenML(dst []byte, r *Record) ([]byte, error) {
	if r.Time < firstSenMLTime {
		first := time.Unix(0, firstSenMLTime).UTC().Format(time.RFC3339)
		return dst, &formError{"the samples begin at " + time.Unix(0, r.Time).UTC().Format(time.RFC3339) +
			", and SenML has no form for a time before " + first + ": add from=" + first + ", or ask for csv or json"}
	}
	one := [1]touchline.Sample{r.Sample}
	if v := r.Value; v.Kind() == touchline.Number && !finite(v.Float()) {
		one[0].Value = touchline.TextValue(string(payload.AppendFloat(nil, v.Float())))
	}
	at := len(dst)
	dst, err := payload.AppendSenMLJSON(dst, one[:])
	if err != nil {
		return dst, &formError{"SenML has no form for a sample: " + err.Error() + "; ask for csv or json"}
	}
	dst = append(dst[:at], dst[at+1:len(dst)-2]...) // without [ and }]
	dst = appendMember(dst, "gateway", r.Gateway)
	if r.Clock != NoteNone {
		dst = appendMember(dst, "clock", r.Clock.String())
	}
	return append(appendReplacedBy(dst, r), '}'), nil
}
