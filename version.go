package touchline

// Version is the release of gateway and cloud, as `touchline version` prints
// it and hello carries it. CHANGELOG.md has its history.
const Version = "0.1.0"
