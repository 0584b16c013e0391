package config

import (
	"encoding"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Keys returns the dotted keys of a settings struct in the order of its
// fields. Lists of tables are left out: no single string can set them.
func Keys(settings any) []string {
	var keys []string
	var walk func(t reflect.Type, prefix string)
	walk = func(t reflect.Type, prefix string) {
		for i := range t.NumField() {
			f := t.Field(i)
			key := prefix + f.Tag.Get("toml")
			switch {
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			case f.Type.Kind() == reflect.Struct && !isTextType(f.Type):
				walk(f.Type, key+".")
			default:
				keys = append(keys, key)
			}
		}
	}
	walk(reflect.TypeOf(settings), "")
	return keys
}

// Variable returns the environment variable of a key.
func Variable(prefix, key string) string {
	return prefix + "_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		fields[t.Field(i).Tag.Get("toml")] = i
	}
	return fields
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

func isTextType(t reflect.Type) bool { return reflect.PointerTo(t).Implements(textUnmarshaler) }
func isText(v reflect.Value) bool    { return isTextType(v.Type()) }

// assign sets a scalar field from a value that the TOML decoder returned.
func assign(dst reflect.Value, v any) error {
	if isText(dst) {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("want a quoted value such as %s, have %s", example(dst), describe(v))
		}
		return dst.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s))
	}
	switch dst.Kind() {
	case reflect.String:
		if s, ok := v.(string); ok {
			dst.SetString(s)
			return nil
		}
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			dst.SetBool(b)
			return nil
		}
	case reflect.Int, reflect.Int64:
		if n, ok := v.(int64); ok {
			dst.SetInt(n)
			return nil
		}
	case reflect.Float64:
		if n, ok := v.(int64); ok {
			dst.SetFloat(float64(n))
			return nil
		}
		if f, ok := v.(float64); ok && !math.IsNaN(f) && !math.IsInf(f, 0) {
			dst.SetFloat(f)
			return nil
		}
	default:
		panic("BUG: setting of type " + dst.Type().String())
	}
	return fmt.Errorf("want %s, have %s", kindName(dst), describe(v))
}

// assignText sets a scalar field from a string.
func assignText(dst reflect.Value, s string) error {
	if isText(dst) {
		return dst.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s))
	}
	switch dst.Kind() {
	case reflect.String:
		dst.SetString(s)
		return nil
	case reflect.Bool:
		if b, err := strconv.ParseBool(s); err == nil {
			dst.SetBool(b)
			return nil
		}
	case reflect.Int, reflect.Int64:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			dst.SetInt(n)
			return nil
		}
	case reflect.Float64:
		if f, err := strconv.ParseFloat(s, 64); err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
			dst.SetFloat(f)
			return nil
		}
	default:
		panic("BUG: setting of type " + dst.Type().String())
	}
	return fmt.Errorf("want %s, have %q", kindName(dst), s)
}

func kindName(v reflect.Value) string {
	switch v.Kind() {
	case reflect.String:
		return `a string in quotes`
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	default:
		return "a whole number"
	}
}

func describe(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("the string %q", v)
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	default:
		return fmt.Sprintf("%v", v)
	}
}

func example(v reflect.Value) string {
	if s, ok := v.Interface().(interface{ Example() string }); ok {
		return strconv.Quote(s.Example())
	}
	return `"…"`
}

// hint names the key that was probably meant.
func hint(name string, fields map[string]int) string {
	best, distance := "", 3 // further apart is no typing error any more
	for _, candidate := range sortedKeys(fields) {
		if d := editDistance(name, candidate); d < distance {
			best, distance = candidate, d
		}
	}
	if best != "" {
		return fmt.Sprintf(" (did you mean %q?)", best)
	}
	return ": here one of " + strings.Join(sortedKeys(fields), ", ") + " is known"
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
