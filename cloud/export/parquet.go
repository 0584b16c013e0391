package export

import (
	"io"

	"github.com/parquet-go/parquet-go"

	"touchline"
	"touchline/cloud"
)

// A row is one of a Parquet table: its tags are the file's schema, and their
// order the columns'. Of value, text, boolean and bytes one is not null. Names
// and values that come again are in dictionaries; times and numbers, which
// rise, are stored as differences.
type row struct {
	Time     int64    `parquet:"time,timestamp(nanosecond),delta"`
	Gateway  string   `parquet:"gateway,dict"`
	Sensor   string   `parquet:"sensor,dict"`
	Metric   string   `parquet:"metric,dict"`
	Unit     string   `parquet:"unit,dict"`
	Value    *float64 `parquet:"value,dict"`
	Text     *string  `parquet:"text,plain"`
	Boolean  *bool    `parquet:"boolean"`
	Bytes    *[]byte  `parquet:"bytes,plain"`
	Clock    string   `parquet:"clock,dict"`
	Stamped  bool     `parquet:"stamped"`
	Received int64    `parquet:"received,timestamp(nanosecond),dict"`
	Epoch    string   `parquet:"epoch,dict"`
	Seq      int64    `parquet:"seq,delta"` // below 1<<63: a gateway would need centuries
}

const (
	// batchRows are handed to the library at a time.
	batchRows = 1024
	// groupRows are the rows of a row group, the piece that readers work on at
	// a time, in parallel, or leave out by its times. Its pages stay in memory
	// until it is written: 10 MB of recordings, 40 MB of noise.
	groupRows = 1 << 20
	// groupTextBytes of texts and bytes end a row group before that.
	groupTextBytes = 16 << 20
	// dictionaryBytes is where a column goes on without a dictionary, until the
	// row group ends: 131,072 different numbers.
	dictionaryBytes = 1 << 20
)

type parquetTable struct {
	to    *parquet.GenericWriter[row]
	batch []row
	// what the rows of the batch point to
	numbers  [batchRows]float64
	texts    [batchRows]string
	booleans [batchRows]bool
	bytes    [batchRows][]byte

	rows, textBytes int // in the row group
	epoch           touchline.Epoch
	epochText       string
}

// newParquet begins a file that the readers of the field take: pages of version
// 1, zstd, statistics of times and names, which let a reader leave row groups
// out, and none of free texts.
func newParquet(w io.Writer, o Options) *parquetTable {
	options := []parquet.WriterOption{
		parquet.CreatedBy("touchline-cloud", o.Version, "parquet-go"),
		parquet.Compression(&parquet.Zstd),
		parquet.DataPageVersion(1),
		parquet.DictionaryMaxBytes(dictionaryBytes),
		parquet.SkipPageBounds("text"),
		parquet.SkipPageBounds("bytes"),
		parquet.SkipPageStatistics("text"),
		parquet.SkipPageStatistics("bytes"),
		parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("time"))),
	}
	for key, value := range o.Properties {
		options = append(options, parquet.KeyValueMetadata(key, value))
	}
	t := &parquetTable{to: parquet.NewGenericWriter[row](w, options...), batch: make([]row, 0, batchRows)}
	t.epochText = t.epoch.String()
	return t
}

// Add implements Table.
func (t *parquetTable) Add(r *cloud.Record) error {
	if r.Epoch != t.epoch {
		t.epoch, t.epochText = r.Epoch, r.Epoch.String()
	}
	n := len(t.batch)
	t.batch = append(t.batch, row{
		Time: r.Time, Gateway: r.Gateway, Sensor: r.Sensor, Metric: r.Metric, Unit: r.Unit, Clock: r.Clock.String(),
		Stamped: r.Stamped, Received: r.Received, Epoch: t.epochText, Seq: int64(r.Seq),
	})
	row := &t.batch[n]
	switch v := r.Value; v.Kind() {
	case touchline.Number:
		t.numbers[n] = v.Float()
		row.Value = &t.numbers[n]
	case touchline.Bool:
		t.booleans[n] = v.Bool()
		row.Boolean = &t.booleans[n]
	case touchline.Text:
		t.texts[n] = v.Text()
		row.Text = &t.texts[n]
	case touchline.Bytes:
		t.bytes[n] = []byte(v.Text())
		row.Bytes = &t.bytes[n]
	}
	t.rows++
	t.textBytes += len(r.Value.Text())
	switch {
	case t.rows == groupRows || t.textBytes >= groupTextBytes:
		return t.endGroup()
	case len(t.batch) == batchRows:
		return t.write()
	}
	return nil
}

func (t *parquetTable) write() error {
	_, err := t.to.Write(t.batch)
	clear(t.batch) // it must keep no text
	t.batch = t.batch[:0]
	return err
}

func (t *parquetTable) endGroup() error {
	if err := t.write(); err != nil {
		return err
	}
	t.rows, t.textBytes = 0, 0
	return t.to.Flush()
}

// Close implements Table.
func (t *parquetTable) Close() error {
	if err := t.write(); err != nil {
		return err
	}
	return t.to.Close()
}
