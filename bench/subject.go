package main

import (
	"context"
	"errors"
)

// A subject is what is measured: a gateway that sensors connect to, and
// upstream of it a cloud (or a second broker) where messages end. Both are
// processes of their own.
type subject interface {
	// Start starts both, and returns when they are connected.
	Start(ctx context.Context) error
	// Address is where sensors connect, once started.
	Address() string
	// Mark returns the counters as they stand.
	Mark(ctx context.Context) (mark, error)
	// StopCloud and StartCloud take the upstream away and bring it back.
	StopCloud()
	StartCloud(ctx context.Context) error
	// Stored returns how many messages have arrived in all, however often
	// the cloud was started.
	Stored(ctx context.Context) (messages float64, err error)
	// Processes returns the gateway and the cloud as they run.
	Processes() (gateway, cloud *process)
	// BufferDir is the folder in which the gateway keeps what it holds.
	BufferDir() string
	// Stop ends both. It may be called twice, and before Start.
	Stop()
}

// A mark is the counters of a subject at one time. Those of a process begin
// again when it starts.
type mark struct {
	stored                     float64 // messages
	ages                       buckets // from publish to stored
	wireBytes                  float64 // over the uplink; NaN where it is not known
	commits                    float64 // of the gateway; NaN where it does not say
	gatewayCPU, cloudCPU       float64 // seconds
	gatewayWrites, cloudWrites float64 // bytes sent to storage
}

// addProcesses fills in what /proc knows.
func (m *mark) addProcesses(gateway, cloud *process) error {
	var errs [4]error
	var written [2]int64
	m.gatewayCPU, errs[0] = gateway.cpuSeconds()
	m.cloudCPU, errs[1] = cloud.cpuSeconds()
	written[0], errs[2] = gateway.writtenBytes()
	written[1], errs[3] = cloud.writtenBytes()
	m.gatewayWrites, m.cloudWrites = float64(written[0]), float64(written[1])
	return errors.Join(errs[:]...)
}
