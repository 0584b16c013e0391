package rollup

// nearlySame is how far two nodes may be apart in what they take for old without
// computing it anew for one another: an hour of the clock and then some, and less
// than a day, which is the least that settings differ by.
const nearlySame = 6 * 3600 // s

// KeepSeconds returns from what time on rows of seconds are kept, where it was
// from another and a RollupTrim says so. Where more is to be kept than was, by
// settings or since the clock that said so was ahead, what has gone is computed
// anew, and the spans are that: minutes too, of which that clock dropped more.
func KeepSeconds(was, seconds, minutes int64) (from int64, again Spans) {
	if seconds >= was || was-seconds <= nearlySame {
		return max(was, seconds), again
	}
	since := seconds
	if minutes != MinSecond {
		since = min(seconds, minutes)
	}
	if since = max(since, MinSecond); since <= min(was-1, MaxSecond) {
		again.list = []Span{{Gateway: 0, From: since, To: min(was-1, MaxSecond), Removes: true}}
	}
	return seconds, again
}
