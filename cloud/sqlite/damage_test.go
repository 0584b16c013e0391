package sqlite

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
)

// damaged breaks the third of five blocks in one way each; what the query
// and the audit have to say of it.
var damaged = map[string]struct {
	sql    string
	says   string // in the error of Samples; "" where a query does not notice
	audits string
}{
	"flipped bit in the data": {`UPDATE block SET data = CAST(x'00' || substr(data, 2) AS BLOB) WHERE id = 3`, "is damaged: CRC", "block 3"},
	"shortened data":          {`UPDATE block SET data = substr(data, 1, 10) WHERE id = 3`, "is damaged: CRC", "block 3"},
	"emptied data":            {`UPDATE block SET data = x'' WHERE id = 3`, "is damaged: CRC", "block 3"},
	"another first number":    {`UPDATE block SET first = 1000 WHERE id = 3`, "is damaged: CRC", "the cursor has the numbers"},
	"another count":           {`UPDATE block SET count = 9 WHERE id = 3`, "is damaged: CRC", "block 3"},
	"absurd count":            {`UPDATE block SET count = 4294967295 WHERE id = 3`, "count of 4294967295", "block 3"},
	"no count":                {`UPDATE block SET count = 0 WHERE id = 3`, "count of 0", "out of bounds"},
	"another time":            {`UPDATE block_time SET max_time = max_time + 1 WHERE block = 3`, "it is found at", "is not found at its time"},
	"no time":                 {`DELETE FROM block_time WHERE block = 3`, "", "is not found at its time"},
	"a filter that hides":     {`UPDATE block SET filter = x'0000' WHERE id = 3`, "", "its filter hides"},
	"no cursor's numbers":     {`UPDATE cursor SET ranges = x''`, "", "the cursor has the numbers []"},
	"broken cursor":           {`UPDATE cursor SET ranges = x'0000'`, "", "ranges are damaged"},
	"wrong counters":          {`UPDATE gateway SET samples = samples + 1`, "", "counted 51 samples"},
	"no cursor":               {`PRAGMA foreign_keys = 0; DELETE FROM cursor`, "", "refer to rows that are not there"},
	"a block gone":            {`DELETE FROM block WHERE id = 3`, "its row is gone", "4 blocks have 5 entries by time"},
	"a block aside changed":   {`UPDATE aside SET data = x'00'`, "", "kept aside"},
}

func TestDamage_IsReportedAndShortensNothingElse(t *testing.T) {
	for name, c := range damaged {
		t.Run(name, func(t *testing.T) {
			s := openTest(t)
			var log bytes.Buffer
			s.logger = slog.New(slog.NewTextHandler(&log, nil))
			if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
				t.Fatal(err)
			}
			epoch := touchline.NewEpoch()
			var work []cloud.Delivery
			for i := range 5 {
				work = append(work, recordertest.NewDelivery(t, "north", epoch, uint64(1+10*i), recordertest.Series("belt", int64(1000*i), 1, 10)))
			}
			work = append(work, recordertest.Undecodable("north", epoch, 51, 10, "?"))
			if _, err := s.Record(t.Context(), work); err != nil {
				t.Fatal(err)
			}
			audit(t, s)
			if _, err := s.write.Exec(c.sql); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Audit(t.Context()); err == nil || !strings.Contains(err.Error(), c.audits) {
				t.Errorf("Audit: %v\nwant findings with %q", err, c.audits)
			}
			if c.says == "" {
				return
			}
			s.limits.Samples = 8 // several passes meet the block; it is reported once
			var got []cloud.Record
			err := s.Samples(t.Context(), cloud.Query{}, func(r cloud.Record) error { got = append(got, r); return nil })
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "1 stored blocks can't be read: block 3 (gateway north, epoch ") {
				t.Errorf("Samples: %v\nwant an error that names block 3 and says %q", err, c.says)
			}
			if want := recordertest.Records(work[0], work[1], work[3], work[4]); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("Samples yielded %d records, want the %d of the other blocks", len(got), len(want))
			}
			if n := strings.Count(log.String(), "block=3"); n != 1 || s.Stats().Damaged != 1 {
				t.Errorf("the block was logged %d times and counted %d times, want once:\n%s", n, s.Stats().Damaged, &log)
			}
		})
	}
}
