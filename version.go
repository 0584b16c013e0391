package touchline

// Version is the release of gateway and cloud, as `touchline version` prints
// it and hello carries it. CHANGELOG.md has its history.
const Version = "0.1.0"

// Released is before this version came out, in ns since the Unix epoch
// (2026-11-01): a clock that shows an earlier time is not set.
const Released int64 = 1_793_491_200e9
