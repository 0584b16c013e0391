package cloud

import (
	"fmt"

	"touchline"
)

// A NewerStoreError says that the record store has a schema that this version
// does not know. The store was not touched.
type NewerStoreError struct {
	Schema, Known int
	Needs         string // the version that brought the schema, "" where the store does not say
}

// Error says what reads the store, and what else there is to do.
func (e *NewerStoreError) Error() string {
	reader := "a newer touchline-cloud"
	if touchline.IsRelease(e.Needs) {
		reader = "touchline-cloud " + e.Needs + " or newer"
	}
	return fmt.Sprintf("%s reads this record store: its schema is %d, and touchline-cloud %s knows those up to %d. Install that one again, or put back a backup of the store from before it was upgraded: gateways send again what they still keep",
		reader, e.Schema, touchline.Version, e.Known)
}
