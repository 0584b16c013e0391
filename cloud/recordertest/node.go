package recordertest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"touchline/cloud"
)

// Aging is a store whose nodes can be made to have been silent for longer.
type Aging interface {
	AgeNodes(t *testing.T, id string, by time.Duration)
}

func aNode(id, name string) cloud.Node {
	return cloud.Node{ID: id, Name: name, Version: "v1", Started: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), Sessions: 7, MaxSessions: 100,
		SamplesPerSecond: 1234.5, BytesPerSecond: 99.25, LagSeconds: 0.5, Load: 0.07, Shed: 3}
}

var nodeTests = map[string]func(*fixture){
	"Nodes_EachKnowsAll": func(f *fixture) {
		other := f.second()
		a, b := aNode("1", "north 10.0.0.1:8090"), aNode("2", "arena 10.0.0.2:8090")
		b.Draining = true
		if list, err := f.store.Announce(f.Context(), a); err != nil || len(list) != 1 || list[0].Node != a {
			f.Fatalf("Announce: %+v %v", list, err)
		}
		list, err := other.Announce(f.Context(), b)
		if err != nil {
			f.Fatal(err)
		}
		again, err := f.store.Nodes(f.Context())
		if err != nil || len(again) != 2 || again[0].Node != b || again[1].Node != a || len(list) != 2 || list[0].Node != b || list[1].Node != a {
			f.Fatalf("nodes are %+v and %+v, %v: want %+v and %+v", list, again, err, b, a)
		}
		for _, n := range again {
			if n.Age < 0 || n.Age > time.Minute || n.Lost() {
				f.Errorf("node %s was seen %s ago", n.ID, n.Age)
			}
		}
		a.Sessions = 8
		if list, err = f.store.Announce(f.Context(), a); err != nil || len(list) != 2 || list[1].Node != a {
			f.Fatalf("announced anew: %+v %v, want %+v", list, err, a)
		}
		for range 2 {
			if err := other.Withdraw(f.Context(), "2"); err != nil {
				f.Fatal(err)
			}
		}
		f.nodes("1")
		f.reopen()
		f.nodes("1")
	},

	"Nodes_ThoseThatAreGoneAreForgotten": func(f *fixture) {
		aging, ok := f.store.(Aging)
		if !ok {
			f.Skip("the store is not Aging: its nodes can't be made older")
		}
		announce := func(n cloud.Node) {
			f.Helper()
			if _, err := f.store.Announce(f.Context(), n); err != nil {
				f.Fatal(err)
			}
		}
		for _, id := range []string{"1", "2", "3", "4"} {
			announce(aNode(id, "name of "+id))
		}
		aging.AgeNodes(f.T, "2", cloud.NodeLost+time.Second)
		list, err := f.store.Nodes(f.Context())
		if err != nil || len(list) != 4 || list[1].State() != "lost" || list[0].State() != "ready" {
			f.Fatalf("%+v %v: want 2 lost", list, err)
		}
		aging.AgeNodes(f.T, "3", cloud.NodeForgotten+time.Second)
		announce(aNode("1", "name of 1"))
		f.nodes("1", "2", "4")
		// A node that was started again takes the place of its former life once
		// that is lost, and not of another with the same name that lives.
		announce(aNode("5", "name of 2"))
		announce(aNode("6", "name of 4"))
		f.nodes("1", "4", "5", "6")
	},

	// A clock that was ahead, and is set right, leaves rows of the future. Who lives
	// says so again in seconds; a former life that would be ready until then would
	// be sent gateways that nobody takes.
	"Nodes_ThoseOfTheFutureAreForgotten": func(f *fixture) {
		aging, ok := f.store.(Aging)
		if !ok {
			f.Skip("the store is not Aging: its nodes can't be made younger")
		}
		for _, id := range []string{"1", "2"} {
			if _, err := f.store.Announce(f.Context(), aNode(id, "name of "+id)); err != nil {
				f.Fatal(err)
			}
		}
		aging.AgeNodes(f.T, "1", -24*time.Hour)
		aging.AgeNodes(f.T, "2", -24*time.Hour)
		if list, err := f.store.Nodes(f.Context()); err != nil || len(list) != 2 || list[0].State() != "lost" || list[1].State() != "lost" {
			f.Fatalf("%+v %v: want both lost", list, err)
		}
		list, err := f.store.Announce(f.Context(), aNode("2", "name of 2"))
		if err != nil || len(list) != 1 || list[0].ID != "2" || list[0].State() != "ready" {
			f.Fatalf("%+v %v: want 2, ready", list, err)
		}
	},

	"Nodes_AnyNumberAnnounceAtOnce": func(f *fixture) {
		stores := []Store{f.store, f.second()}
		var group errgroup.Group
		const nodes, times = 8, 20
		for i := range nodes {
			group.Go(func() error {
				for n := range times {
					node := aNode(fmt.Sprint(i), strings.Repeat("x", 255))
					node.Sessions = n
					if _, err := stores[i%2].Announce(f.Context(), node); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			f.Fatal(err)
		}
		list, err := f.store.Nodes(f.Context())
		if err != nil || len(list) != nodes || slices.ContainsFunc(list, func(n cloud.Sighting) bool { return n.Sessions != times-1 }) {
			f.Fatalf("%+v %v: want the last of each of %d", list, err, nodes)
		}
	},
}

// nodes wants these, in any order.
func (f *fixture) nodes(ids ...string) {
	f.Helper()
	list, err := f.store.Nodes(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	var got []string
	for _, n := range list {
		got = append(got, n.ID)
	}
	slices.Sort(got)
	if !slices.Equal(got, ids) {
		f.Fatalf("nodes are %v, want %v", got, ids)
	}
}
