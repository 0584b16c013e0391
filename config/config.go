// Package config reads a program's settings from four layers: flags before
// environment variables before a TOML file before the embedded defaults. The
// defaults are a TOML file themselves and must set every key once, so the
// file that documents the settings is the settings. Everything that is wrong
// is reported at once, each with its place, its key and a hint. It keeps no
// state and starts nothing.
package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Sources are the layers that Load reads.
type Sources struct {
	Defaults  []byte            // TOML; sets every key
	File      string            // path of a TOML file, or "" for none
	EnvPrefix string            // "TOUCHLINE": sensors.mqtt.listen is TOUCHLINE_SENSORS_MQTT_LISTEN
	Environ   []string          // as os.Environ returns it
	Flags     map[string]string // by key; a flag named --data sets "gateway.data"
}

// A Checker is a settings struct that knows what its values must be beyond
// their type. Check calls report once for each problem.
type Checker interface {
	Check(report func(key, problem string))
}

// A Problem is one thing that is wrong with the settings.
type Problem struct {
	Source string // file name, "environment variable X" or "flag"
	Line   int    // in the file; 0 where there is none
	Key    string // dotted; "" for a syntax error
	Text   string // what is wrong and what to do
}

// String returns the problem as one line.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Source)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// An Error is everything that is wrong with the settings, a line each.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load fills dst, a pointer to a struct whose fields carry toml tags, from
// the layers. Fields may be strings, booleans, integers, floats, types that
// implement encoding.TextUnmarshaler, lists of these, tables (structs), and
// lists of tables. A list in a higher layer replaces the whole list below it.
// It returns the environment variables with the prefix that are no setting of
// this program, and an *Error for settings that are wrong.
func Load(dst any, src Sources) (unused []string, err error) {
	l := &loader{root: reflect.ValueOf(dst).Elem(), origin: map[string]Problem{}}
	l.document("defaults", src.Defaults)
	if len(l.problems) > 0 {
		panic("BUG: embedded defaults: " + (&Error{l.problems}).Error())
	}
	if src.File != "" {
		data, err := os.ReadFile(src.File)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		l.document(src.File, data)
	}
	unused = l.environment(src.EnvPrefix, src.Environ)
	for _, key := range sortedKeys(src.Flags) {
		l.text(key, src.Flags[key], Problem{Source: "flag", Key: key})
	}
	if c, ok := dst.(Checker); ok && len(l.problems) == 0 {
		c.Check(func(key, problem string) {
			at, ok := l.origin[key]
			if !ok {
				at = Problem{Source: "settings", Key: key}
			}
			at.Text = problem
			l.problems = append(l.problems, at)
		})
	}
	if len(l.problems) > 0 {
		return unused, &Error{l.problems}
	}
	return unused, nil
}

// A loader fills one struct and remembers where each key came from.
type loader struct {
	root     reflect.Value
	origin   map[string]Problem // where a key was last set, without its text
	problems []Problem
}

func (l *loader) report(at Problem, format string, args ...any) {
	at.Text = fmt.Sprintf(format, args...)
	l.problems = append(l.problems, at)
}

// document applies one TOML document.
func (l *loader) document(name string, data []byte) {
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		at := Problem{Source: name}
		var syntax *toml.DecodeError
		if errors.As(err, &syntax) {
			at.Line, _ = syntax.Position()
		}
		l.report(at, "%s", strings.TrimPrefix(err.Error(), "toml: "))
		return
	}
	l.table(l.root, tree, "", documentPlaces(name, data))
}

// places tells where a key stands in a document.
type places func(key string) Problem

// table applies a table of the document to a struct.
func (l *loader) table(dst reflect.Value, tree map[string]any, prefix string, at places) {
	fields := fieldsOf(dst.Type())
	names := sortedKeys(tree)
	slices.SortStableFunc(names, func(a, b string) int { return at(prefix+a).Line - at(prefix+b).Line })
	for _, name := range names {
		key := prefix + name
		index, ok := fields[name]
		if !ok {
			l.report(at(key), "unknown key%s", hint(name, fields))
			continue
		}
		l.value(dst.Field(index), tree[name], key, at)
	}
}

// value applies a value of the document to a field.
func (l *loader) value(dst reflect.Value, v any, key string, at places) {
	l.origin[key] = at(key)
	if dst.Kind() == reflect.Struct && !isText(dst) {
		tree, ok := v.(map[string]any)
		if !ok {
			l.report(at(key), "want a table [%s], have %s", key, describe(v))
			return
		}
		l.table(dst, tree, key+".", at)
		return
	}
	if dst.Kind() == reflect.Slice {
		l.list(dst, v, key, at)
		return
	}
	if err := assign(dst, v); err != nil {
		l.report(at(key), "%s", err)
	}
}

func (l *loader) list(dst reflect.Value, v any, key string, at places) {
	items, ok := v.([]any)
	if !ok {
		l.report(at(key), "want a list, have %s", describe(v))
		return
	}
	list := reflect.MakeSlice(dst.Type(), len(items), len(items))
	for i, item := range items {
		l.value(list.Index(i), item, fmt.Sprintf("%s[%d]", key, i), at)
	}
	dst.Set(list)
}

// environment applies the variables with the prefix.
func (l *loader) environment(prefix string, environ []string) (unused []string) {
	if prefix == "" {
		return nil
	}
	byVariable := map[string]string{}
	for _, key := range Keys(l.root.Interface()) {
		byVariable[Variable(prefix, key)] = key
	}
	for _, entry := range environ {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || !strings.HasPrefix(name, prefix+"_") {
			continue
		}
		key, ok := byVariable[name]
		if !ok {
			unused = append(unused, name)
			continue
		}
		l.text(key, value, Problem{Source: "environment variable " + name, Key: key})
	}
	return unused
}

// text sets a key from a string, as flags and variables give it. Lists are
// separated by commas.
func (l *loader) text(key, s string, at Problem) {
	dst := l.root
	for _, name := range strings.Split(key, ".") {
		index, ok := fieldsOf(dst.Type())[name]
		if !ok {
			panic("BUG: no setting " + key)
		}
		dst = dst.Field(index)
	}
	l.origin[key] = at
	if dst.Kind() != reflect.Slice {
		if err := assignText(dst, s); err != nil {
			l.report(at, "%s", err)
		}
		return
	}
	var parts []string
	if s != "" {
		parts = strings.Split(s, ",")
	}
	list := reflect.MakeSlice(dst.Type(), len(parts), len(parts))
	for i, part := range parts {
		if err := assignText(list.Index(i), strings.TrimSpace(part)); err != nil {
			l.report(at, "%s", err)
		}
	}
	dst.Set(list)
}
