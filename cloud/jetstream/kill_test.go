package jetstream

const childRole = "TOUCHLINE_TEST_ROLE"

func runChild() int { return 0 }
