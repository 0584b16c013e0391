package cloud

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"touchline"
)

// A standing is what /metrics says of a node beside what it counts: its build,
// and what may end one day, a certificate's time and a disk's room. Its series
// have few labels, each with few values; no metric of a node has a gateway's id
// for a label, since 10,000 gateways would be 10,000 series of each.
type standing struct {
	data     string           // folder whose file system is told of; "" is none
	unsynced bool             // the record store may lose what it calls stored
	certEnds func() time.Time // zero where there is no certificate
}

var (
	buildDesc    = desc("build_info", "1, with the version of this program and of Go.", "version", "goversion")
	unsyncedDesc = desc("store_unsynced", "1 where store_unsynced lets the record store lose at a power cut what it called stored.")
	freeDesc     = desc("data_free_bytes", "Free bytes of the file system of the folder data; not there where nothing is in it.")
	sizeDesc     = desc("data_size_bytes", "Size of the file system of the folder data; not there where nothing is in it.")
	certDesc     = desc("certificate_expiry_timestamp_seconds", "When the TLS certificate ends, in seconds since the Unix epoch; not there without tls.cert.")
)

// Describe implements prometheus.Collector.
func (s *standing) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildDesc, unsyncedDesc, freeDesc, sizeDesc, certDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *standing) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(buildDesc, 1, touchline.Version, runtime.Version())
	gauge(unsyncedDesc, truth(s.unsynced))
	if size, free, ok := diskSpace(s.data); ok {
		gauge(sizeDesc, size)
		gauge(freeDesc, free)
	}
	if ends := s.certEnds(); !ends.IsZero() {
		gauge(certDesc, float64(ends.Unix()))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
