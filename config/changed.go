package config

import (
	"reflect"
)

// Changed returns the dotted keys whose values differ in two settings of one
// type, in the order of its fields. A list of tables is one key.
func Changed[S any](a, b S) []string {
	var keys []string
	var walk func(a, b reflect.Value, prefix string)
	walk = func(a, b reflect.Value, prefix string) {
		for i := range a.NumField() {
			f := a.Type().Field(i)
			key := prefix + f.Tag.Get("toml")
			if f.Type.Kind() == reflect.Struct && !isTextType(f.Type) {
				walk(a.Field(i), b.Field(i), key+".")
			} else if x, y := a.Field(i), b.Field(i); !reflect.DeepEqual(x.Interface(), y.Interface()) && !(f.Type.Kind() == reflect.Slice && x.Len() == 0 && y.Len() == 0) {
				keys = append(keys, key)
			}
		}
	}
	walk(reflect.ValueOf(a), reflect.ValueOf(b), "")
	return keys
}
