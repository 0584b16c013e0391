package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"touchline"
	"touchline/wire"
)

// How much the baselines move: 2,048 blocks are two million samples and some
// 4 MB; as a row each, 256,000 samples are some 20 MB.
const (
	baselineBlocks = 2048
	baselineRows   = 256
)

// measureLimits measures what the disk, and PostgreSQL where the node has one,
// do with the same blocks in transactions of the same size.
func (s *cloudSettings) measureLimits(ctx context.Context, dir string, n *cloudNode, blocks []packed, f *recordFigures) error {
	batch := max(1, int(float64(f.FlatOut.Batch)+0.5))
	var err error
	if f.Disk, err = measureDisk(dir, blocks, batch); err != nil || n.pg == nil {
		return err
	}
	at, err := n.pg.Create(ctx, "baseline")
	if err != nil {
		return err
	}
	copier := copier{dir: dir, psql: n.pg.Program("psql"), url: at}
	f.CopyBlocks, err = copier.measure(ctx, copied{
		table:  "CREATE TABLE block (day date, id bigint, cursor bigint, first bigint, count integer, crc bigint, received bigint, data bytea); ALTER TABLE block ALTER data SET STORAGE EXTERNAL",
		name:   "block",
		blocks: baselineBlocks, batch: batch, write: writeBlockRow,
	}, blocks)
	if err != nil {
		return err
	}
	f.CopySamples, err = copier.measure(ctx, copied{
		table:  "CREATE TABLE sample (time bigint, sensor text, metric text, unit text, value double precision)",
		name:   "sample",
		blocks: baselineRows, batch: batch, write: writeSampleRows,
	}, blocks)
	return err
}

// measureDisk writes blocks to a file, with a sync behind each batch.
func measureDisk(dir string, blocks []packed, batch int) (number, error) {
	f, err := os.Create(filepath.Join(dir, "baseline"))
	if err != nil {
		return unknown, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	samples := 0
	var pending []byte
	began := time.Now()
	for i := range baselineBlocks {
		b := &blocks[i%len(blocks)]
		pending = append(pending, b.data...)
		samples += len(b.samples)
		if (i+1)%batch != 0 && i+1 < baselineBlocks {
			continue
		}
		if _, err := f.Write(pending); err != nil {
			return unknown, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return unknown, fmt.Errorf("fdatasync: %w", err)
		}
		pending = pending[:0]
	}
	return number(float64(samples) / time.Since(began).Seconds()), nil
}

// A copier has psql COPY rows, as a person would who knows PostgreSQL well.
type copier struct{ dir, psql, url string }

// copied is what it copies, in a transaction for each batch of blocks.
type copied struct {
	table, name   string
	blocks, batch int
	write         func(w io.Writer, number int, b *packed) error
}

// measure returns samples a second. What it costs to write the script is not
// counted.
func (c *copier) measure(ctx context.Context, what copied, blocks []packed) (number, error) {
	path := filepath.Join(c.dir, what.name+".sql")
	f, err := os.Create(path)
	if err != nil {
		return unknown, err
	}
	defer os.Remove(path)
	defer f.Close()
	script := bufio.NewWriter(f)
	samples := 0
	for i := range what.blocks {
		b := &blocks[i%len(blocks)]
		if i%what.batch == 0 {
			fmt.Fprintf(script, "COPY %s FROM stdin;\n", what.name)
		}
		if err := what.write(script, i, b); err != nil {
			return unknown, err
		}
		samples += len(b.samples)
		if (i+1)%what.batch == 0 || i+1 == what.blocks {
			fmt.Fprint(script, "\\.\n")
		}
	}
	if err := errors.Join(script.Flush(), f.Close()); err != nil {
		return unknown, err
	}
	if err := c.run(ctx, "--command", what.table); err != nil {
		return unknown, err
	}
	began := time.Now()
	if err := c.run(ctx, "--file", path); err != nil {
		return unknown, err
	}
	return number(float64(samples) / time.Since(began).Seconds()), nil
}

func (c *copier) run(ctx context.Context, args ...string) error {
	args = append([]string{"--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--dbname", c.url}, args...)
	if out, err := exec.CommandContext(ctx, c.psql, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("psql: %w: %.500s", err, out)
	}
	return nil
}

// writeBlockRow writes what the record store has of a block.
func writeBlockRow(w io.Writer, n int, b *packed) error {
	block := wire.Block{Epoch: touchline.Epoch{1}, First: uint64(n), Count: uint32(len(b.samples)), Data: b.data}
	_, err := fmt.Fprintf(w, "2026-05-30\t%d\t1\t%d\t%d\t%d\t%d\t\\\\x%x\n", n, block.First, block.Count, block.Sum(), b.samples[0].Time, b.data)
	return err
}

func writeSampleRows(w io.Writer, _ int, b *packed) error {
	for i := range b.samples {
		s := &b.samples[i]
		if _, err := fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%v\n", s.Time, s.Sensor, s.Metric, s.Unit, s.Value.Float()); err != nil {
			return err
		}
	}
	return nil
}
