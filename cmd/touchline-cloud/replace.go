package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

func replaceCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replace",
		Short: "Replace what was received of a sensor by a late upload",
		Long: `A wearable that is docked after the match uploads its own full recording, which
stands for what was received live. A mask says so: of the samples of a sensor
in a time range it hides all but those that it keeps, in every query and in the
rows of seconds and minutes, whether they were recorded before the mask or come
after it. Nothing is deleted: GET /v1/samples?replaced=true shows all. Where
masks overlap the one with the highest number decides. A mask is never changed;
revoke puts it out of force.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command: `touchline-cloud replace sources`, `replace add`, `replace list` or `replace revoke NUMBER`")
		},
	}
	cmd.AddCommand(replaceSourcesCommand(s), replaceAddCommand(s), replaceListCommand(s), replaceRevokeCommand(s))
	return cmd
}

// A scope is what a mask covers, as flags say it.
type scope struct {
	gateways       []string
	venue          string
	sensor, metric string
	from, to       string
}

func (sc *scope) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&sc.gateways, "gateway", nil, "gateways whose samples are meant, `ID,…`")
	f.StringVar(&sc.venue, "venue", "", "all gateways that the venue has now, instead of --gateway")
	f.StringVar(&sc.sensor, "sensor", "", "the sensor, an `ID`")
	f.StringVar(&sc.metric, "metric", "", "only this `METRIC` of it")
	f.StringVar(&sc.from, "from", "", "begin of the range, RFC 3339 or ns since 1970, a `TIME`")
	f.StringVar(&sc.to, "to", "", "end of the range, which is not in it, a `TIME`")
}

// mask returns a mask that covers the scope and keeps nothing yet.
func (sc *scope) mask(cmd *cobra.Command, store recordStore) (cloud.Mask, error) {
	m := cloud.Mask{Sensor: sc.sensor, Metric: sc.metric, Gateways: sc.gateways}
	if sc.sensor == "" || sc.from == "" || sc.to == "" || (len(sc.gateways) == 0) == (sc.venue == "") {
		return m, errors.New("give --sensor, --from and --to, and either --gateway or --venue")
	}
	var err error
	if m.From, err = cloud.ParseTime(sc.from); err != nil {
		return m, fmt.Errorf("--from: %w", err)
	}
	if m.To, err = cloud.ParseTime(sc.to); err != nil {
		return m, fmt.Errorf("--to: %w", err)
	}
	if sc.venue == "" {
		return m, nil
	}
	m.Gateways, err = gatewaysOf(cmd, store, sc.venue)
	return m, err
}

func gatewaysOf(cmd *cobra.Command, store recordStore, venue string) ([]string, error) {
	all, err := store.Gateways(cmd.Context())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, g := range all {
		if g.Venue == venue {
			names = append(names, g.ID)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("venue %q has no gateway: `touchline-cloud gateway list` shows them", venue)
	}
	return names, nil
}

func replaceAddCommand(s *settings) *cobra.Command {
	var sc scope
	var keeps []string
	var by, reason string
	cmd := &cobra.Command{
		Use:   "add --sensor ID (--gateway ID | --venue NAME) --from TIME --to TIME --keep EPOCH[:FIRST-LAST]",
		Short: "Add a mask and print its number",
		Example: `  touchline-cloud replace sources --venue "North Arena" --sensor vest-7 --from 2026-05-30T15:00:00Z --to 2026-05-30T17:00:00Z
  touchline-cloud replace add --venue "North Arena" --sensor vest-7 --from 2026-05-30T15:00:00Z --to 2026-05-30T17:00:00Z \
      --keep 8f14e45fceea167a5a36dedd4bea2543:120001-264000 --reason "docked recording of match 12"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				m, err := sc.mask(cmd, store)
				if err != nil {
					return err
				}
				if m.Keep, err = parseKeeps(keeps); err != nil {
					return fmt.Errorf("--keep: %w", err)
				}
				m.By, m.Reason = by, reason
				if m, err = store.AddMask(cmd.Context(), m); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), m.Number)
				return nil
			})
		},
	}
	sc.flags(cmd)
	cmd.Flags().StringSliceVar(&keeps, "keep", nil, "samples that stay, by their numbers as `sources` lists them, `EPOCH[:FIRST-LAST],…`")
	signFlags(cmd, &by, &reason)
	return cmd
}

// signFlags are those that say who and why.
func signFlags(cmd *cobra.Command, by, reason *string) {
	name := "unknown"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	cmd.Flags().StringVar(by, "by", name, "who makes the mask, a `NAME` that is kept with it")
	cmd.Flags().StringVar(reason, "reason", "", "why, a `TEXT` that is kept with it")
}

// parseKeeps reads EPOCH or EPOCH:FIRST-LAST, several of one epoch joined.
func parseKeeps(texts []string) ([]wire.EpochRanges, error) {
	if len(texts) == 0 {
		return nil, errors.New("name the samples that stay: `touchline-cloud replace sources` lists what there is")
	}
	var keep []wire.EpochRanges
	for _, text := range texts {
		name, numbers, some := strings.Cut(text, ":")
		epoch, err := touchline.ParseEpoch(name)
		if err != nil {
			return nil, err
		}
		k := cloud.WholeEpoch(epoch)
		if some {
			first, last, _ := strings.Cut(numbers, "-")
			from, err1 := strconv.ParseUint(first, 10, 64)
			to, err2 := strconv.ParseUint(last, 10, 64)
			r := touchline.Range{First: from, Last: to}
			if err1 != nil || err2 != nil || !r.Valid() {
				return nil, fmt.Errorf("%.60q: want EPOCH or EPOCH:FIRST-LAST", text)
			}
			k.Ranges = touchline.Ranges{r}
		}
		at := slices.IndexFunc(keep, func(o wire.EpochRanges) bool { return o.Epoch == epoch })
		if at < 0 {
			keep = append(keep, k)
			continue
		}
		keep[at].Ranges.AddAll(k.Ranges)
	}
	return keep, nil
}

func replaceListCommand(s *settings) *cobra.Command {
	var sensor string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the masks, those out of force included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				masks, err := store.Masks(cmd.Context(), sensor)
				if err != nil {
					return err
				}
				if asJSON {
					out := json.NewEncoder(cmd.OutOrStdout())
					for i := range masks {
						if err := out.Encode(&masks[i]); err != nil {
							return err
						}
					}
					return nil
				}
				table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "NUMBER\tSENSOR\tMETRIC\tFROM\tTO\tGATEWAYS\tKEEPS\tBY\tMADE\tREMARKS")
				for i := range masks {
					printMask(table, &masks[i])
				}
				return table.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&sensor, "sensor", "", "only those of this sensor, an `ID`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line, with all that is kept of each")
	return cmd
}

func printMask(table *tabwriter.Writer, m *cloud.Mask) {
	remarks := m.Reason
	if m.Revoked != 0 {
		remarks = strings.TrimPrefix(remarks+fmt.Sprintf("; revoked by %d", m.Revoked), "; ")
	}
	if m.Revokes != 0 {
		fmt.Fprintf(table, "%d\t-\t-\t-\t-\t-\t-\t%s\t%s\t%s\n", m.Number, m.By, moment(m.Made),
			strings.TrimSuffix(fmt.Sprintf("revokes %d; %s", m.Revokes, remarks), "; "))
		return
	}
	var keeps []string
	for _, k := range m.Keep {
		for _, r := range k.Ranges {
			keeps = append(keeps, source(k.Epoch, r))
		}
	}
	fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Number, m.Sensor, orDash(m.Metric), instant(m.From), instant(m.To),
		strings.Join(m.Gateways, ","), strings.Join(keeps, ","), m.By, moment(m.Made), orDash(remarks))
}

// source writes numbers as --keep reads them.
func source(epoch touchline.Epoch, r touchline.Range) string {
	if r == (touchline.Range{First: 1, Last: touchline.MaxSeq}) {
		return epoch.String()
	}
	return fmt.Sprintf("%s:%d-%d", epoch, r.First, r.Last)
}

func instant(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

func replaceRevokeCommand(s *settings) *cobra.Command {
	var by, reason string
	cmd := &cobra.Command{
		Use:   "revoke NUMBER",
		Short: "Put a mask out of force: what it hid is shown again",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name the mask: `touchline-cloud replace revoke NUMBER`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := strconv.ParseUint(args[0], 10, 63)
			if err != nil || number == 0 {
				return fmt.Errorf("%.40q is no number of a mask: `touchline-cloud replace list` shows them", args[0])
			}
			return s.withStore(cmd, func(store recordStore) error {
				m, err := store.AddMask(cmd.Context(), cloud.Mask{Revokes: number, By: by, Reason: reason})
				if errors.Is(err, cloud.ErrNoMask) {
					return fmt.Errorf("mask %d is not there, is a revocation, or is out of force: `touchline-cloud replace list` shows them", number)
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), m.Number)
				return nil
			})
		},
	}
	signFlags(cmd, &by, &reason)
	return cmd
}

// A run is what came of a sensor in one go, as numbers of one epoch: a
// recording that is uploaded by the gateway that received the sensor live has
// later numbers and earlier times.
type run struct {
	gateway  string
	epoch    touchline.Epoch
	numbers  touchline.Range
	from, to int64
	samples  uint64
	hidden   uint64
}

// stepBack is how far the time of a metric goes back, at least, where another
// run begins: sensors may send some samples out of order.
const stepBack = int64(10 * time.Second)

// maxSourceSamples bounds what is held to find runs, at some 40 bytes each:
// 80 MB, and five hours of a sensor with 100 samples a second.
const maxSourceSamples = 2_000_000

func replaceSourcesCommand(s *settings) *cobra.Command {
	var sc scope
	cmd := &cobra.Command{
		Use:   "sources --sensor ID (--gateway ID | --venue NAME) --from TIME --to TIME",
		Short: "List where the samples of a sensor in a range come from, for --keep",
		Long: `Lists the epochs and numbers under which samples of a sensor came, in a range or
near it: what was received live and what was uploaded later stand apart, also
where one gateway took both. HIDDEN counts those that masks in force hide.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				m, err := sc.mask(cmd, store)
				if err != nil {
					return err
				}
				runs, err := sources(cmd, store, &m)
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "KEEP\tGATEWAY\tSAMPLES\tHIDDEN\tFIRST TIME\tLAST TIME")
				for _, r := range runs {
					fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\t%s\n", source(r.epoch, r.numbers), r.gateway, r.samples, r.hidden, instant(r.from), instant(r.to))
				}
				return table.Flush()
			})
		},
	}
	sc.flags(cmd)
	return cmd
}

// A mark is a sample as far as runs are found by it.
type mark struct {
	seq    uint64
	time   int64
	metric string
	hidden bool
}

// sources returns the runs of what a mask would cover, by gateway, epoch and
// number.
func sources(cmd *cobra.Command, store recordStore, m *cloud.Mask) ([]run, error) {
	var runs []run
	for _, gateway := range m.Gateways {
		marks := make(map[touchline.Epoch][]mark)
		n := 0
		q := cloud.Query{Gateway: gateway, Sensor: m.Sensor, Metric: m.Metric, From: &m.From, To: &m.To, Replaced: true}
		err := store.Samples(cmd.Context(), q, func(r cloud.Record) error {
			if n++; n > maxSourceSamples {
				return fmt.Errorf("there are more than %d samples: name a shorter range, or a metric", maxSourceSamples)
			}
			marks[r.Epoch] = append(marks[r.Epoch], mark{r.Seq, r.Time, r.Metric, r.ReplacedBy != 0})
			return nil
		})
		if err != nil {
			return nil, err
		}
		epochs := slices.SortedFunc(maps.Keys(marks), func(a, b touchline.Epoch) int { return bytes.Compare(a[:], b[:]) })
		for _, epoch := range epochs {
			runs = append(runs, runsOf(gateway, epoch, marks[epoch])...)
		}
	}
	return runs, nil
}

func runsOf(gateway string, epoch touchline.Epoch, marks []mark) (runs []run) {
	slices.SortFunc(marks, func(a, b mark) int { return cmp.Compare(a.seq, b.seq) })
	newest := make(map[string]int64) // of the run, by metric
	for _, k := range marks {
		if last, ok := newest[k.metric]; len(runs) == 0 || ok && k.time < last-stepBack {
			runs = append(runs, run{gateway: gateway, epoch: epoch, numbers: touchline.Range{First: k.seq}, from: k.time, to: k.time})
			clear(newest)
		}
		r := &runs[len(runs)-1]
		r.numbers.Last, r.from, r.to = k.seq, min(r.from, k.time), max(r.to, k.time)
		r.samples++
		if k.hidden {
			r.hidden++
		}
		if last, ok := newest[k.metric]; !ok || k.time > last {
			newest[k.metric] = k.time
		}
	}
	return runs
}
