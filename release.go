package touchline

import "regexp"

// releasePattern is semver's, with bounds: what a version is called is shown to
// people, and may come out of a file that is damaged.
var releasePattern = regexp.MustCompile(`^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(-[0-9A-Za-z.]{1,16})?$`)

// IsRelease says whether a text is what a version of touchline is called.
func IsRelease(text string) bool { return releasePattern.MatchString(text) }
