package export_test

import (
	"bytes"
	"testing"

	"github.com/parquet-go/parquet-go"
	"pgregory.net/rapid"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/export"
)

// A parquetRow is a row as somebody reads it who knows docs/store.md only.
type parquetRow struct {
	Time     int64    `parquet:"time,timestamp(nanosecond)"`
	Gateway  string   `parquet:"gateway"`
	Sensor   string   `parquet:"sensor"`
	Metric   string   `parquet:"metric"`
	Unit     string   `parquet:"unit"`
	Value    *float64 `parquet:"value"`
	Text     *string  `parquet:"text"`
	Boolean  *bool    `parquet:"boolean"`
	Bytes    *[]byte  `parquet:"bytes"`
	Clock    string   `parquet:"clock"`
	Stamped  bool     `parquet:"stamped"`
	Received int64    `parquet:"received,timestamp(nanosecond)"`
	Epoch    string   `parquet:"epoch"`
	Seq      int64    `parquet:"seq"`
}

func (p *parquetRow) record(t rapid.TB) cloud.Record {
	t.Helper()
	r := cloud.Record{Gateway: p.Gateway, Received: p.Received, Seq: uint64(p.Seq)}
	r.Sensor, r.Metric, r.Unit, r.Time, r.Stamped = p.Sensor, p.Metric, p.Unit, p.Time, p.Stamped
	kinds := 0
	if p.Value != nil {
		r.Value = touchline.NumberValue(*p.Value)
		kinds++
	}
	if p.Text != nil {
		r.Value = touchline.TextValue(*p.Text)
		kinds++
	}
	if p.Boolean != nil {
		r.Value = touchline.BoolValue(*p.Boolean)
		kinds++
	}
	if p.Bytes != nil {
		r.Value = touchline.BytesValue(string(*p.Bytes))
		kinds++
	}
	if kinds != 1 {
		t.Fatalf("a row has %d values", kinds)
	}
	for _, note := range []cloud.Note{cloud.NoteUnset, cloud.NoteSet, cloud.NoteCorrected} {
		if note.String() == p.Clock {
			r.Clock = note
		}
	}
	var err error
	if r.Epoch, err = touchline.ParseEpoch(p.Epoch); err != nil {
		t.Fatal(err)
	}
	return r
}

func readParquet(t rapid.TB, data []byte) (records []cloud.Record) {
	t.Helper()
	rows, err := parquet.Read[parquetRow](bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		records = append(records, rows[i].record(t))
	}
	return records
}

func TestParquet_ReadsBackExactly(t *testing.T) {
	bits := func(a, b cloud.Record) bool { return a == b } // what a NaN carries included
	fixed(t, func(t rapid.TB, records []cloud.Record) {
		compare(t, readParquet(t, write(t, export.Options{Format: export.Parquet}, records)), records, bits)
	})
	var many []cloud.Record
	for range 50 { // several batches
		many = append(many, edges()...)
	}
	compare(t, readParquet(t, write(t, export.Options{Format: export.Parquet}, many)), many, bits)
}

// What lets a reader leave most of the file alone, and tells a person what it is.
func TestParquet_SaysWhatItIs(t *testing.T) {
	var records []cloud.Record
	for i := range 3000 {
		r := cloud.Record{Gateway: "arena-1"}
		r.Sensor, r.Metric, r.Time, r.Value = "belt-7", "log", int64(i), touchline.TextValue("text")
		records = append(records, r)
	}
	data := write(t, export.Options{Format: export.Parquet, Version: "1.2.3", Properties: map[string]string{"touchline.store": "abc"}}, records)
	file, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	const schema = `message row {
	required int64 time (TIMESTAMP(isAdjustedToUTC=true,unit=NANOS));
	required binary gateway (STRING);
	required binary sensor (STRING);
	required binary metric (STRING);
	required binary unit (STRING);
	optional double value;
	optional binary text (STRING);
	optional boolean boolean;
	optional binary bytes;
	required binary clock (STRING);
	required boolean stamped;
	required int64 received (TIMESTAMP(isAdjustedToUTC=true,unit=NANOS));
	required binary epoch (STRING);
	required int64 seq (INT(64,true));
}`
	if got := file.Schema().String(); got != schema {
		t.Errorf("the schema is\n%s", got)
	}
	if got, ok := file.Lookup("touchline.store"); !ok || got != "abc" {
		t.Errorf("touchline.store is %q", got)
	}
	group := file.Metadata().RowGroups[0]
	if len(group.SortingColumns) != 1 || group.SortingColumns[0].ColumnIdx != 0 || group.SortingColumns[0].Descending {
		t.Errorf("it is sorted by %v", group.SortingColumns)
	}
	time, text := group.Columns[0].MetaData.Statistics, group.Columns[6].MetaData.Statistics
	if len(time.MinValue) != 8 || time.MinValue[0] != 0 || time.MaxValue[0] != 2999&0xff || time.MaxValue[1] != 2999>>8 {
		t.Errorf("times have the bounds %x to %x", time.MinValue, time.MaxValue)
	}
	if len(text.MinValue)+len(text.MaxValue) != 0 {
		t.Errorf("texts have the bounds %q to %q", text.MinValue, text.MaxValue)
	}
}
