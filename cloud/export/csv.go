package export

import (
	"encoding/base64"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"touchline"
	"touchline/cloud"
	"touchline/payload"
)

// chunkBytes is how much is written at a time: some 350 rows.
const chunkBytes = 64 << 10

// A csvTable is CSV by RFC 4180, with a line feed alone at the end of a line,
// like the answers of GET /v1/samples. kind says what value is: of a number
// the shortest form that reads back as the same float64 (NaN, +Inf and -Inf
// where it is that; of a NaN's payload nothing is told), a text as it is, true
// or false, or bytes in base64.
type csvTable struct {
	to          io.Writer
	gzip        *gzip.Writer // nil: not compressed
	buf         []byte
	spreadsheet bool
	time        stamp
	received    stamp
	epoch       touchline.Epoch
	epochText   string
}

// header names the columns; the first and the tenth depend on the form of times.
func header(form string) string {
	t, received := "time", "received"
	if form == Nanoseconds {
		t, received = "time_unix_ns", "received_unix_ns"
	}
	return t + ",gateway,sensor,metric,unit,kind,value,clock,stamped," + received + ",epoch,seq\n"
}

func newCSV(w io.Writer, o Options) *csvTable {
	t := &csvTable{to: w, buf: make([]byte, 0, chunkBytes+chunkBytes/8), spreadsheet: o.Spreadsheet}
	if o.Compress {
		t.gzip = gzip.NewWriter(w)
		t.to = t.gzip
	}
	t.time.ns, t.received.ns = o.Time == Nanoseconds, o.Time == Nanoseconds
	t.epochText = t.epoch.String()
	if o.Spreadsheet {
		t.buf = append(t.buf, "\ufeff"...)
	}
	t.buf = append(t.buf, header(o.Time)...)
	return t
}

// Add implements Table.
func (t *csvTable) Add(r *cloud.Record) error {
	if r.Epoch != t.epoch {
		t.epoch, t.epochText = r.Epoch, r.Epoch.String()
	}
	b := t.time.append(t.buf, r.Time)
	for _, field := range [...]string{r.Gateway, r.Sensor, r.Metric, r.Unit} {
		b = t.appendField(append(b, ','), field)
	}
	b = append(append(b, ','), r.Value.Kind().String()...)
	b = t.appendValue(append(b, ','), r.Value)
	b = append(append(b, ','), r.Clock.String()...)
	b = strconv.AppendBool(append(b, ','), r.Stamped)
	b = t.received.append(append(b, ','), r.Received)
	b = append(append(b, ','), t.epochText...)
	b = strconv.AppendUint(append(b, ','), r.Seq, 10)
	t.buf = append(b, '\n')
	if len(t.buf) < chunkBytes {
		return nil
	}
	return t.flush()
}

func (t *csvTable) appendValue(dst []byte, v touchline.Value) []byte {
	switch v.Kind() {
	case touchline.Number:
		return payload.AppendFloat(dst, v.Float())
	case touchline.Bool:
		return strconv.AppendBool(dst, v.Bool())
	case touchline.Text:
		return t.appendField(dst, v.Text())
	case touchline.Bytes:
		if t.spreadsheet { // base64 may begin with a plus sign
			return t.appendField(dst, base64.StdEncoding.EncodeToString([]byte(v.Text())))
		}
		return base64.StdEncoding.AppendEncode(dst, []byte(v.Text()))
	}
	return dst
}

// appendField appends a text. With what OWASP's page "CSV Injection" names at
// its beginning a spreadsheet takes it for a formula, in quotes as without.
func (t *csvTable) appendField(dst []byte, s string) []byte {
	if t.spreadsheet && s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		s = "'" + s
	}
	return cloud.AppendCSVField(dst, s)
}

func (t *csvTable) flush() error {
	_, err := t.to.Write(t.buf)
	t.buf = t.buf[:0]
	return err
}

// Close implements Table.
func (t *csvTable) Close() error {
	if err := t.flush(); err != nil {
		return err
	}
	if t.gzip != nil {
		return t.gzip.Close()
	}
	return nil
}

// A stamp writes times of one column. One second's text serves all the samples
// that follow in it.
type stamp struct {
	ns     bool
	second int64
	text   []byte // of second, up to the point; nil before the first
}

const nsPerSecond = 1_000_000_000

func (s *stamp) append(dst []byte, t int64) []byte {
	if s.ns {
		return strconv.AppendInt(dst, t, 10)
	}
	second, ns := t/nsPerSecond, t%nsPerSecond
	if ns < 0 {
		second, ns = second-1, ns+nsPerSecond
	}
	if s.text == nil || second != s.second {
		s.second = second
		s.text = time.Unix(second, 0).UTC().AppendFormat(s.text[:0], "2006-01-02T15:04:05.")
	}
	dst = append(dst, s.text...)
	for digit := int64(nsPerSecond / 10); digit > 0; digit /= 10 {
		dst = append(dst, byte('0'+ns/digit%10))
	}
	return append(dst, 'Z')
}
