package daemon

// SpareRequests is how many connections HTTP takes beyond max_connections.
const SpareRequests = maxRequests
