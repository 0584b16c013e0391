package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/archive"
	"touchline/config"
	"touchline/daemon"
)

func bufferCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "buffer",
		Short: "Check the buffer, write it to a file, take in another gateway's",
		Long: `Looks after what the gateway holds on its disk. Where the gateway runs, the
command asks it over the socket in its data folder; else it reads the folder.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command: `touchline buffer check`, `buffer export FILE` or `buffer import FILE`")
		},
	}
	cmd.AddCommand(bufferCheckCommand(s), bufferExportCommand(s), bufferImportCommand(s))
	return cmd
}

// onFolder hands the data folder to a command.
func (s *settings) onFolder(do func(*daemon.Folder, touchline.Config) error) error {
	c, err := s.load()
	if err != nil {
		return err
	}
	f, err := daemon.OpenFolder(c)
	if err != nil {
		return err
	}
	defer f.Close()
	return do(f, c)
}

func bufferCheckCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read the whole buffer and say what it holds and what is wrong",
		Long: `Reads every page and decodes every block. It changes nothing and sets nothing
aside. The exit status is 1 where something is wrong.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.onFolder(func(f *daemon.Folder, _ touchline.Config) error {
				r, err := f.Check(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					out := json.NewEncoder(cmd.OutOrStdout())
					out.SetIndent("", "  ")
					if err := out.Encode(r); err != nil {
						return err
					}
				} else {
					printReport(cmd.OutOrStdout(), r)
				}
				if !r.OK() {
					return fmt.Errorf("%s: %d problems", r.File, len(r.Problems)+r.More)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// shownRanges of an epoch and shownEpochs are what a person is shown.
const (
	shownRanges = 5
	shownEpochs = 50
)

func printReport(out io.Writer, r daemon.Report) {
	state := "no gateway has it open"
	if r.Running {
		state = "a gateway has it open"
	}
	fmt.Fprintf(out, "%s (%s), %s\n", r.File, config.Size(r.Bytes).Short(), state)
	for i, e := range r.Epochs {
		if i == shownEpochs {
			fmt.Fprintf(out, "  … and %d more epochs (--json has all)\n", len(r.Epochs)-i)
			break
		}
		var ranges []string
		for n, one := range e.Ranges {
			if n == shownRanges || e.Cut && n == len(e.Ranges)-1 {
				ranges = append(ranges, "…")
				break
			}
			ranges = append(ranges, fmt.Sprintf("%d-%d", one.First, one.Last))
		}
		fmt.Fprintf(out, "  epoch %s: %d samples in %d blocks (%s), numbers %s, from %s to %s\n", e.Epoch, e.Samples, e.Blocks,
			config.Size(e.Data).Short(), strings.Join(ranges, " "), e.MinTime.Format(time.RFC3339), e.MaxTime.Format(time.RFC3339))
	}
	fmt.Fprintf(out, "%d samples in %d blocks; %d records of %d lost samples wait for the cloud\n", r.Samples, r.Blocks, r.LostRecords, r.LostSamples)
	for _, name := range r.Aside {
		if reader := r.AsideReader[name]; reader != "" {
			name += " (" + reader + " takes it back)"
		}
		fmt.Fprintf(out, "set aside: %s\n", name)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(out, "problem: %s\n", p)
	}
	if r.More > 0 {
		fmt.Fprintf(out, "… and %d problems more\n", r.More)
	}
	if r.OK() {
		fmt.Fprintln(out, "everything holds")
	}
}

func bufferExportCommand(s *settings) *cobra.Command {
	var to daemon.ExportFile
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write what the cloud does not have to a file, signed by this gateway",
		Long: `Writes blocks and records of loss to a file that ` + "`touchline-cloud import`" + ` or, on
a gateway with a line, ` + "`touchline buffer import`" + ` takes in. Nothing is deleted here: the
gateway forgets what the cloud has when it hears that from it. The cloud must
know this gateway's key (` + "`touchline key`" + `).`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("name the file: `touchline buffer export FILE" + archive.Suffix + "`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.onFolder(func(f *daemon.Folder, c touchline.Config) error {
				to.Path = args[0]
				if info, err := os.Stat(to.Path); err == nil && info.IsDir() { // a stick, say
					to.Path = filepath.Join(to.Path, c.Gateway.ID+"-"+time.Now().UTC().Format("20060102T150405Z")+archive.Suffix)
				}
				summary, err := f.ExportTo(cmd.Context(), to)
				if err != nil {
					return err
				}
				info, err := os.Stat(to.Path)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %d samples in %d blocks of %d epochs, %d records of loss, %s\n", to.Path,
					summary.Samples, summary.Blocks, len(summary.Epochs), summary.Lost, config.Size(info.Size()).Short())
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&to.All, "all", false, "also what the cloud has stored and is still kept here")
	cmd.Flags().BoolVar(&to.Force, "force", false, "replace FILE where it is there")
	return cmd
}

func bufferImportCommand(s *settings) *cobra.Command {
	var trusted []string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take in another gateway's export and carry it to the cloud",
		Long: `Takes in the file as a whole or not at all, and sends it to the cloud, where it
stays what it is: the samples of the gateway that exported it. It is deleted here
when the cloud has stored it. Only files that are signed with a key in
buffer.import_keys, or named with --trust, are taken in.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name the file: `touchline buffer import FILE`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.onFolder(func(f *daemon.Folder, c touchline.Config) error {
				file, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer file.Close()
				taken, err := f.Import(cmd.Context(), trusted, file)
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				what := "is taken in and on its way to the cloud"
				switch {
				case taken.Known:
					what = "is here already, and on its way to the cloud"
				case len(c.Uplink.URLs) == 0:
					what = "is taken in, and waits: uplink.urls is empty"
				case !f.Running():
					what = "is taken in, and goes to the cloud when the gateway runs"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: gateway %s, %d samples in %d blocks, %d records of loss: %s\n", args[0],
					taken.Header.Gateway, taken.Summary.Samples, taken.Summary.Blocks, taken.Summary.Lost, what)
				return nil
			})
		},
	}
	cmd.Flags().StringArrayVar(&trusted, "trust", nil, "`ID=KEY`: one more gateway, with the key that `touchline key` prints there")
	return cmd
}
