package main

import (
	"compress/gzip"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"touchline"
	"touchline/wire"
)

// recordings are the files of real measurements that the cloud is loaded with.
var recordings = []string{"endurance", "gym_imu", "pitch_positions"}

// samplesPerBlock is what a busy gateway puts into a block.
const samplesPerBlock = 1000

// readRecording returns the samples of a recording, in the order of the file.
func readRecording(dir, name string) ([]touchline.Sample, error) {
	path := filepath.Join(dir, name+".csv.gz")
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open recording (-testdata names their folder): %w", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	rows, err := csv.NewReader(z).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var samples []touchline.Sample
	for i, row := range rows {
		if i == 0 || len(row) != 5 {
			continue // the header
		}
		ns, err := strconv.ParseInt(row[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		value, err := strconv.ParseFloat(row[4], 64)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		samples = append(samples, touchline.Sample{Sensor: row[1], Metric: row[2], Unit: row[3], Time: ns, Value: touchline.NumberValue(value)})
	}
	return samples, nil
}

// A packed block is what of a block does not depend on its numbers.
type packed struct {
	samples []touchline.Sample
	data    []byte
}

// packRecordings makes blocks of all recordings, one after the other.
func packRecordings(dir string) (list []packed, err error) {
	encoder := wire.NewEncoder()
	for _, name := range recordings {
		samples, err := readRecording(dir, name)
		if err != nil {
			return nil, err
		}
		for len(samples) > 0 {
			encoded, err := encoder.Encode(nil, samples[:min(samplesPerBlock, len(samples))])
			if err != nil {
				return nil, fmt.Errorf("encode %s: %w", name, err)
			}
			list = append(list, packed{samples[:encoded.Count], encoded.Data})
			samples = samples[encoded.Count:]
		}
	}
	return list, nil
}
