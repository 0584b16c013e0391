package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"touchline/cloud"
)

func nodesCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "Show the nodes that have this record store",
		Long: "Shows the nodes that have this record store, each as it said of itself some\nseconds ago (SEEN). One that missed three times is lost; its row goes after an hour.\n" +
			"A node that ended in order is not shown.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				list, err := store.Nodes(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return printNodesJSON(cmd.OutOrStdout(), list)
				}
				return printNodes(cmd.OutOrStdout(), list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "for programs: a JSON array, an object for each node")
	return cmd
}

func printNodesJSON(w io.Writer, list []cloud.Sighting) error {
	type row struct {
		cloud.Node
		State string  `json:"state"`       // ready, draining or lost
		Age   float64 `json:"age_seconds"` // since the node said so
	}
	rows := make([]row, 0, len(list)) // [] where there are none
	for i := range list {
		rows = append(rows, row{list[i].Node, list[i].State(), list[i].Age.Seconds()})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(rows)
}

func printNodes(w io.Writer, list []cloud.Sighting) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tSTATE\tSESSIONS\tSAMPLES/S\tBYTES/S\tLAG\tLOAD\tUP\tSEEN\tVERSION")
	for i := range list {
		n := &list[i]
		fmt.Fprintf(table, "%s\t%s\t%d of %d\t%.0f\t%.0f\t%s\t%.0f%%\t%s\t%s ago\t%s\n", n.Name, n.State(), n.Sessions, n.MaxSessions,
			n.SamplesPerSecond, n.BytesPerSecond, time.Duration(n.LagSeconds*1e9).Round(time.Millisecond), 100*n.Load,
			max(0, time.Since(n.Started)).Round(time.Second), n.Age.Round(100*time.Millisecond), n.Version)
	}
	return table.Flush()
}
