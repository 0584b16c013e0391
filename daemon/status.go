package daemon

import (
	"time"

	"touchline"
	"touchline/uplink"
)

// Status is what GET /v1/status answers, `touchline status` prints and
// /metrics counts: one snapshot, so that all three agree.
type Status struct {
	Gateway string        `json:"gateway"`
	Version string        `json:"version"`
	Time    time.Time     `json:"time"`
	Started time.Time     `json:"started"`
	Listen  ListenStatus  `json:"listen"`
	Sensors SensorsStatus `json:"sensors"`
	Clock   ClockStatus   `json:"clock"`
	Buffer  BufferStatus  `json:"buffer"`
	Wear    *WearStatus   `json:"wear,omitempty"` // nil where the system does not say
	Uplink  UplinkStatus  `json:"uplink"`
	Key     KeyStatus     `json:"key"`
	Relay   RelayStatus   `json:"relay"`
	Reload  ReloadStatus  `json:"reload"`
}

// RelayStatus says how the archives of other gateways get on to the cloud.
type RelayStatus struct {
	Waiting   int    `json:"waiting"` // archives
	Bytes     int64  `json:"bytes"`
	Delivered uint64 `json:"delivered"` // archives, since the start
	Segments  uint64 `json:"segments"`
	LastError string `json:"last_error,omitempty"`
}

// ListenStatus has the addresses, "off" where there is none.
type ListenStatus struct {
	MQTT    string `json:"mqtt"`
	HTTP    string `json:"http"`
	MQTTTLS string `json:"mqtt_tls"`
	HTTPTLS string `json:"http_tls"`
}

// SensorsStatus counts what came in since the start.
type SensorsStatus struct {
	Seen             []SensorStatus            `json:"seen"` // in order of id
	Forgotten        uint64                    `json:"forgotten"`
	Samples          uint64                    `json:"samples"` // durable
	SamplesPerSecond float64                   `json:"samples_per_second"`
	Messages         uint64                    `json:"messages"`
	Raw              uint64                    `json:"raw"`      // messages kept whole, not understood
	Refused          uint64                    `json:"refused"`  // messages, because the buffer was full
	Failed           uint64                    `json:"failed"`   // messages whose commit failed
	Rejected         uint64                    `json:"rejected"` // sum of rejected_by
	RejectedBy       map[string]uint64         `json:"rejected_by"`
	Dropped          uint64                    `json:"subscriber_messages_dropped"`
	Transports       map[string]TransportCount `json:"transports"`
}

// SensorStatus is one sensor.
type SensorStatus struct {
	ID        string    `json:"id"`
	Transport string    `json:"transport"`
	LastSeen  time.Time `json:"last_seen"`
	Samples   uint64    `json:"samples"`
}

// TransportCount counts one transport.
type TransportCount struct {
	Connections int64  `json:"connections"`
	Messages    uint64 `json:"messages"`
	Samples     uint64 `json:"samples"`
}

// ClockStatus says how far the times that the gateway stamps can be trusted.
type ClockStatus struct {
	State         string  `json:"state"`          // "unset", "set" or "synchronised"
	Source        string  `json:"source"`         // who vouches for it: "system", "cloud" or "none"
	ErrorSeconds  float64 `json:"error_seconds"`  // of the cloud's time, at most
	OffsetSeconds float64 `json:"offset_seconds"` // by which what is stamped is ahead of the system's clock
	UptimeSeconds float64 `json:"uptime_seconds"` // of the machine
	Unconfirmed   int     `json:"unconfirmed"`    // corrections that the cloud has not confirmed
}

// BufferStatus says what waits on disk.
type BufferStatus struct {
	State            string            `json:"state"` // "ok", "full" or "error"
	Epoch            touchline.Epoch   `json:"epoch"`
	Blocks           int64             `json:"blocks"`
	Bytes            int64             `json:"bytes"`
	Samples          int64             `json:"samples"`
	OldestAgeSeconds float64           `json:"oldest_age_seconds"` // running time since its commit
	KeptBlocks       int64             `json:"kept_blocks"`        // that the cloud has stored; not among those above
	KeptSamples      int64             `json:"kept_samples"`
	KeptBytes        int64             `json:"kept_bytes"`
	BallastBytes     int64             `json:"ballast_bytes"`      // held to get out of a full disk
	BallastGiven     bool              `json:"ballast_given_back"` // the disk was full
	Appended         uint64            `json:"appended"`           // samples, since the start
	Acknowledged     uint64            `json:"acknowledged"`       // samples that the cloud has stored
	Lacked           uint64            `json:"lacked"`             // samples that the cloud had stored and lost: sent again
	Evicted          uint64            `json:"evicted"`            // sum of evicted_by
	EvictedBy        map[string]uint64 `json:"evicted_by"`
	LostRecords      int               `json:"lost_records"` // not yet confirmed by the cloud
	Damaged          uint64            `json:"damaged_blocks"`
	DamagedSamples   uint64            `json:"damaged_samples"` // of those blocks, told the cloud as lost
	Aside            []AsideStatus     `json:"set_aside"`       // databases that could not be used, oldest first
	Repeats          RepeatsStatus     `json:"repeats"`         // what was sent again, and not stored again
	Commits          uint64            `json:"commits"`
	CommitErrors     uint64            `json:"commit_errors"`
	CommitSeconds    float64           `json:"last_commit_seconds"`
	LastError        string            `json:"last_error,omitempty"`
}

// RepeatsStatus counts what was recognised at the door since the start.
type RepeatsStatus struct {
	Samples        map[string]uint64 `json:"samples"`         // not stored again, by what told them: "window", "key"
	Window         int               `json:"window_samples"`  // that are remembered now
	ForgottenEarly uint64            `json:"forgotten_early"` // samples that left the window before their time: more memory is needed
	KeysForgotten  uint64            `json:"keys_forgotten_early"`
}

// AsideStatus is one database that was set aside as the gateway started.
// Nothing deletes it but a person.
type AsideStatus struct {
	Path    string    `json:"path"`
	Kind    string    `json:"kind"` // "damaged", "foreign", "newer", "taken"
	Why     string    `json:"why"`
	Needs   string    `json:"needs,omitempty"` // the version of touchline that takes a newer one back
	When    time.Time `json:"when"`
	Bytes   int64     `json:"bytes"`
	State   string    `json:"state"` // "salvaged", "partly salvaged", "untouched"
	Blocks  int64     `json:"blocks_salvaged"`
	Samples int64     `json:"samples_salvaged"`
	Lost    int64     `json:"samples_lost"` // that are known to be
	Problem string    `json:"problem,omitempty"`
}

// UplinkStatus is uplink.Stats; its state is "off" where there is none.
type UplinkStatus = uplink.Stats

// uplinkOff is the state of a gateway that just buffers.
const uplinkOff uplink.State = "off"

// Status returns a snapshot. Any goroutine may call it at any time between
// Open and Close.
func (d *Daemon) Status() Status {
	return Status{
		Gateway: d.config.Gateway.ID,
		Version: touchline.Version,
		Time:    time.Now(),
		Started: d.started,
		Listen:  ListenStatus{MQTT: d.MQTTAddr(), HTTP: d.HTTPAddr(), MQTTTLS: d.MQTTTLSAddr(), HTTPTLS: d.HTTPTLSAddr()},
		Sensors: d.sensorsStatus(),
		Clock:   d.clockStatus(),
		Buffer:  d.bufferStatus(),
		Wear:    d.wear(time.Now()),
		Uplink:  d.uplinkStatus(),
		Key:     d.keyStatus(),
		Reload:  d.reloads.get(),
		Relay:   RelayStatus(d.out.get().relay.Stats()),
	}
}

func (d *Daemon) sensorsStatus() SensorsStatus {
	in := d.intake.Stats()
	s := SensorsStatus{
		Seen:             make([]SensorStatus, 0, len(in.Sensors)),
		Forgotten:        in.Forgotten,
		SamplesPerSecond: d.rate.perSecond(),
		RejectedBy:       make(map[string]uint64, len(in.Rejected)),
		Dropped:          in.Dropped,
		Transports:       make(map[string]TransportCount, len(in.Transports)),
	}
	for _, seen := range in.Sensors {
		s.Seen = append(s.Seen, SensorStatus{ID: seen.Name, Transport: seen.Transport.String(), LastSeen: seen.LastSeen, Samples: seen.Samples})
	}
	for cause, n := range in.Rejected {
		s.RejectedBy[cause.String()] = n
		s.Rejected += n
	}
	for transport, t := range in.Transports {
		s.Transports[transport.String()] = TransportCount{Connections: t.Connections, Messages: t.Messages, Samples: t.Samples}
		s.Messages += t.Messages
		s.Samples += t.Samples
		s.Raw += t.Raw
		s.Refused += t.Refused
		s.Failed += t.Failed
	}
	return s
}

func (d *Daemon) bufferStatus() BufferStatus {
	b := d.buffer.Stats()
	s := BufferStatus{
		State:            string(b.State),
		Epoch:            b.Epoch,
		Blocks:           b.Blocks,
		Bytes:            b.Bytes,
		Samples:          b.Samples,
		OldestAgeSeconds: b.OldestAge.Seconds(),
		KeptBlocks:       b.KeptBlocks,
		KeptSamples:      b.KeptSamples,
		KeptBytes:        b.KeptBytes,
		BallastBytes:     b.Ballast,
		BallastGiven:     b.BallastGiven,
		Appended:         b.Appended,
		Acknowledged:     b.Acked,
		Lacked:           b.Lacked,
		EvictedBy:        b.Evicted,
		LostRecords:      b.LostRecords,
		Damaged:          b.Damaged,
		DamagedSamples:   b.DamagedSamples,
		Aside:            make([]AsideStatus, 0, len(b.Aside)),
		Repeats: RepeatsStatus{
			Samples: map[string]uint64{"window": b.Repeats, "key": b.RepeatsByKey},
			Window:  b.RepeatWindowLen, ForgottenEarly: b.ForgottenEarly, KeysForgotten: b.KeysForgotten,
		},
		Commits:       b.Commits,
		CommitErrors:  b.CommitErrors,
		CommitSeconds: b.LastCommit.Seconds(),
		LastError:     b.LastError,
	}
	for _, n := range b.Evicted {
		s.Evicted += n
	}
	for _, a := range b.Aside {
		s.Aside = append(s.Aside, AsideStatus(a))
	}
	return s
}

func (d *Daemon) uplinkStatus() UplinkStatus {
	out := d.out.get()
	if out.enrol != nil {
		return out.enrol.status()
	}
	up := out.uplink
	if up == nil {
		return UplinkStatus{State: uplinkOff, Since: d.started}
	}
	return up.Stats()
}

// total is how many samples were made durable since the start.
func (d *Daemon) total() uint64 { return d.buffer.Stats().Appended }
