package export_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/base64"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/export"
)

// cells reads CSV by the grammar of RFC 4180 and nothing else (encoding/csv
// takes a CR out of CR LF in quotes, which is somebody's text).
func cells(t rapid.TB, data string) (rows [][]string) {
	t.Helper()
	var row []string
	for i := 0; i < len(data); {
		var field strings.Builder
		if data[i] == '"' {
			for i++; ; i++ {
				if i == len(data) {
					t.Fatalf("quotes are not closed in %.100q", data)
				}
				if data[i] == '"' {
					if i++; i == len(data) || data[i] != '"' {
						break
					}
				}
				field.WriteByte(data[i])
			}
		} else {
			for ; i < len(data) && data[i] != ',' && data[i] != '\n'; i++ {
				if data[i] == '"' || data[i] == '\r' {
					t.Fatalf("%q is in a field without quotes: %.100q", data[i], data[max(0, i-50):])
				}
				field.WriteByte(data[i])
			}
		}
		row = append(row, field.String())
		if i == len(data) {
			t.Fatal("the last line has no end")
		}
		if data[i] == '\n' {
			rows, row = append(rows, row), nil
		} else if data[i] != ',' {
			t.Fatalf("%q is behind a field", data[i])
		} else if i+1 == len(data) {
			t.Fatal("the last line has no end")
		}
		i++
	}
	return rows
}

func readTime(t rapid.TB, s, form string) int64 {
	t.Helper()
	if form == export.Nanoseconds {
		ns, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || len(s) != len("2006-01-02T15:04:05.000000000Z") {
		t.Fatalf("time %q: %v", s, err)
	}
	return at.UnixNano()
}

// readCSV reads a table as a program would that knows docs/store.md only.
func readCSV(t rapid.TB, data, form string) (records []cloud.Record) {
	t.Helper()
	notes := map[string]cloud.Note{"": cloud.NoteNone, "unset": cloud.NoteUnset, "set": cloud.NoteSet, "corrected": cloud.NoteCorrected}
	for i, row := range cells(t, data) {
		if len(row) != 12 {
			t.Fatalf("line %d has %d fields: %q", i, len(row), row)
		}
		if i == 0 {
			continue
		}
		r := cloud.Record{Gateway: row[1]}
		r.Time, r.Sensor, r.Metric, r.Unit = readTime(t, row[0], form), row[2], row[3], row[4]
		var err error
		switch row[5] {
		case "number":
			var f float64
			f, err = strconv.ParseFloat(row[6], 64)
			r.Value = touchline.NumberValue(f)
		case "text":
			r.Value = touchline.TextValue(row[6])
		case "boolean":
			var b bool
			b, err = strconv.ParseBool(row[6])
			r.Value = touchline.BoolValue(b)
		case "bytes":
			var b []byte
			b, err = base64.StdEncoding.DecodeString(row[6])
			r.Value = touchline.BytesValue(string(b))
		default:
			err = fmt.Errorf("kind %q", row[5])
		}
		note, known := notes[row[7]]
		if err != nil || !known {
			t.Fatalf("line %d: %v, clock %q", i, err, row[7])
		}
		r.Clock, r.Stamped, r.Received = note, row[8] == "true", readTime(t, row[9], form)
		if r.Epoch, err = touchline.ParseEpoch(row[10]); err != nil {
			t.Fatal(err)
		}
		if r.Seq, err = strconv.ParseUint(row[11], 10, 64); err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	return records
}

func TestCSV_ReadsBackExactly(t *testing.T) {
	for _, form := range []string{export.RFC3339, export.Nanoseconds} {
		fixed(t, func(t rapid.TB, records []cloud.Record) {
			data := write(t, export.Options{Format: export.CSV, Time: form}, records)
			compare(t, readCSV(t, string(data), form), records, same)
		})
	}
}

func TestCSV_IsWhatDocsSay(t *testing.T) {
	r := cloud.Record{Gateway: "arena-1", Received: 1_780_153_500_120_000_000, Epoch: touchline.Epoch{0xab}, Seq: 7}
	r.Sample = touchline.Sample{Sensor: "belt-7", Metric: "heart_rate", Unit: "beat/min", Time: 1_780_153_500_000_000_001, Value: touchline.NumberValue(142.5)}
	text := r
	text.Value, text.Clock, text.Stamped, text.Unit, text.Metric = touchline.TextValue(`say "no", twice`), cloud.NoteCorrected, true, "", "note"
	for form, want := range map[string]string{
		export.RFC3339: `time,gateway,sensor,metric,unit,kind,value,clock,stamped,received,epoch,seq
2026-05-30T15:05:00.000000001Z,arena-1,belt-7,heart_rate,beat/min,number,142.5,,false,2026-05-30T15:05:00.120000000Z,ab000000000000000000000000000000,7
2026-05-30T15:05:00.000000001Z,arena-1,belt-7,note,,text,"say ""no"", twice",corrected,true,2026-05-30T15:05:00.120000000Z,ab000000000000000000000000000000,7
`,
		export.Nanoseconds: `time_unix_ns,gateway,sensor,metric,unit,kind,value,clock,stamped,received_unix_ns,epoch,seq
1780153500000000001,arena-1,belt-7,heart_rate,beat/min,number,142.5,,false,1780153500120000000,ab000000000000000000000000000000,7
1780153500000000001,arena-1,belt-7,note,,text,"say ""no"", twice",corrected,true,1780153500120000000,ab000000000000000000000000000000,7
`,
	} {
		if got := string(write(t, export.Options{Format: export.CSV, Time: form}, []cloud.Record{r, text})); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", form, got, want)
		}
	}
}

func TestCSV_CompressedIsTheSame(t *testing.T) {
	var records []cloud.Record
	for range 100 { // more than is written at a time
		records = append(records, edges()...)
	}
	plain := write(t, export.Options{Format: export.CSV}, records)
	packed, err := stdgzip.NewReader(bytes.NewReader(write(t, export.Options{Format: export.CSV, Compress: true}, records)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(packed)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%d bytes come out, %d went in (%v)", len(got), len(plain), err)
	}
}

// No cell of what a sensor said begins as a formula does; numbers stay.
func TestCSV_SpreadsheetRunsNoFormula(t *testing.T) {
	var records []cloud.Record
	for _, s := range []string{"=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=1,2", `="a"`} {
		for _, v := range []touchline.Value{touchline.TextValue(s), touchline.BytesValue("\xfb" + s)} { // base64 begins with +
			r := cloud.Record{Gateway: "-gateway", Epoch: touchline.NewEpoch()}
			r.Sensor, r.Metric, r.Unit, r.Value = "=sensor", "@metric", "-unit", v
			records = append(records, r)
		}
	}
	number := cloud.Record{Gateway: "a"}
	number.Value = touchline.NumberValue(-1.5)
	records = append(records, number)

	data, marked := bytes.CutPrefix(write(t, export.Options{Format: export.CSV, Spreadsheet: true}, records), []byte("\ufeff"))
	if !marked {
		t.Error("there is no byte order mark")
	}
	rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range rows[1:] {
		for _, cell := range row {
			if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) && cell != "-1.5" {
				t.Errorf("row %d has the cell %q", i, cell)
			}
		}
	}
	if last := rows[len(rows)-1]; last[6] != "-1.5" {
		t.Errorf("the number became %q", last[6])
	}
	if rows[1][6] != "'=cmd|' /C calc'!A0" || rows[1][2] != "'=sensor" {
		t.Errorf("the texts became %q", rows[1])
	}
}
