package export_test

import (
	"bytes"
	"math"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/export"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write returns the table of the records.
func write(t rapid.TB, o export.Options, records []cloud.Record) []byte {
	t.Helper()
	if o.Time == "" {
		o.Time = export.RFC3339
	}
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	table := export.New(&out, o)
	for i := range records {
		if err := table.Add(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// edges are values and names that a format could get wrong.
func edges() []cloud.Record {
	var records []cloud.Record
	add := func(v touchline.Value) {
		n := len(records)
		records = append(records, cloud.Record{
			Sample:  touchline.Sample{Sensor: "belt-7", Metric: "m", Unit: "beat/min", Time: int64(n) - 3, Value: v, Stamped: n%2 == 0},
			Gateway: "arena-1", Clock: cloud.Note(n % 4), Received: int64(n) * 1e15, Epoch: touchline.Epoch{byte(n / 5)}, Seq: uint64(n + 1),
		})
	}
	for _, f := range []float64{
		0, math.Copysign(0, -1), 1, -1, 0.1, 1.0 / 3, 1e-7, 1e21, 123456789012345678, math.MaxFloat64, math.SmallestNonzeroFloat64,
		math.Inf(1), math.Inf(-1), math.NaN(), math.Float64frombits(0x7ff8_0000_dead_beef),
	} {
		add(touchline.NumberValue(f))
	}
	for _, s := range []string{
		"", " ", "a", "1", "true", "NaN", "=1+1", "+1", "-1", "@a", "\ta", "\ra", "a,b", `a "b"`, `"`, `""`, "a\nb", "a\r\nb", "\r", "\n",
		" a ", "ä€😀", "\ufeffa", "null", "NULL", `\N`, "a\x00b", "';--",
	} {
		add(touchline.TextValue(s))
		add(touchline.BytesValue(s))
	}
	add(touchline.BytesValue("\xff\xfe\x00"))
	add(touchline.BoolValue(true))
	add(touchline.BoolValue(false))
	for _, time := range []int64{math.MinInt64, math.MinInt64 + 1, -1, 0, 1, 999_999_999, 1_000_000_000, math.MaxInt64} {
		add(touchline.NumberValue(1))
		records[len(records)-1].Time, records[len(records)-1].Received = time, time
	}
	for _, name := range []string{"=1+1", "-a", "a,b", `"a"`, " a ", "Läufer 7", "'a"} {
		add(touchline.NumberValue(1))
		r := &records[len(records)-1]
		r.Sensor, r.Metric, r.Unit = name, name, name
	}
	records[len(records)-1].Unit = ""
	records[len(records)-1].Seq = 1<<63 - 1
	return records
}

// anyRecord draws one that a store could have.
func anyRecord() *rapid.Generator[cloud.Record] {
	name := rapid.StringMatching(`[-=a-z",' ]{1,12}`)
	value := rapid.OneOf(
		rapid.Map(rapid.Uint64(), func(bits uint64) touchline.Value { return touchline.NumberValue(math.Float64frombits(bits)) }),
		rapid.Map(rapid.Float64Range(-1000, 1000), touchline.NumberValue),
		rapid.Map(rapid.Bool(), touchline.BoolValue),
		rapid.Map(rapid.String(), touchline.TextValue),
		rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) touchline.Value { return touchline.BytesValue(string(b)) }),
	)
	return rapid.Custom(func(t *rapid.T) cloud.Record {
		r := cloud.Record{Sample: touchline.Sample{
			Sensor: name.Draw(t, "sensor"), Metric: name.Draw(t, "metric"), Unit: rapid.OneOf(rapid.Just(""), name).Draw(t, "unit"),
			Time: rapid.Int64().Draw(t, "time"), Value: value.Draw(t, "value"), Stamped: rapid.Bool().Draw(t, "stamped"),
		}}
		r.Gateway = rapid.StringMatching(`[a-z0-9._-]{1,12}`).Draw(t, "gateway")
		r.Clock = cloud.Note(rapid.IntRange(0, 3).Draw(t, "clock"))
		r.Received = rapid.Int64().Draw(t, "received")
		r.Seq = uint64(rapid.Int64Min(0).Draw(t, "seq"))
		r.Epoch[3] = rapid.Byte().Draw(t, "epoch")
		return r
	})
}

// same says whether two records are one, bit for bit, but for what NaN carries.
func same(a, b cloud.Record) bool {
	if math.IsNaN(a.Value.Float()) && math.IsNaN(b.Value.Float()) {
		a.Value, b.Value = touchline.Value{}, touchline.Value{}
	}
	return a == b
}

func compare(t rapid.TB, got, want []cloud.Record, equal func(a, b cloud.Record) bool) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d rows were read, %d written", len(got), len(want))
	}
	for i := range want {
		if !equal(got[i], want[i]) {
			t.Fatalf("row %d: read %+v, written %+v", i, got[i], want[i])
		}
	}
}

func fixed(t *testing.T, check func(t rapid.TB, records []cloud.Record)) {
	t.Helper()
	check(t, nil)
	check(t, edges())
	rapid.Check(t, func(t *rapid.T) { check(t, rapid.SliceOfN(anyRecord(), 0, 20).Draw(t, "records")) })
}
