package config

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// documentPlaces finds the line of every key of a document that is known to
// parse. A key that stands nowhere (a table made by its members) gets the
// line of its first member.
func documentPlaces(name string, data []byte) places {
	lines := map[string]int{}
	counts := map[string]int{} // entries of a list of tables so far
	var parser unstable.Parser
	parser.Reset(data)
	table := ""
	for parser.NextExpression() {
		node := parser.Expression()
		path, line := nodeKey(&parser, node, "")
		switch node.Kind {
		case unstable.Table:
			table = indexed(path, counts)
			note(lines, table, line)
		case unstable.ArrayTable:
			parent, last := "", path
			if i := strings.LastIndexByte(path, '.'); i >= 0 {
				parent, last = indexed(path[:i], counts)+".", path[i+1:]
			}
			list := parent + last
			table = fmt.Sprintf("%s[%d]", list, counts[list])
			counts[list]++
			note(lines, list, line)
			note(lines, table, line)
		case unstable.KeyValue:
			noteValue(lines, &parser, node, table)
		}
	}
	return func(key string) Problem {
		line := lines[key]
		for within := key; line == 0 && within != ""; { // an entry of a list stands where the list does
			within = within[:max(0, strings.LastIndexAny(within, ".["))]
			line = lines[within]
		}
		return Problem{Source: name, Line: line, Key: key}
	}
}

func note(lines map[string]int, key string, line int) {
	if _, ok := lines[key]; !ok {
		lines[key] = line
	}
}

// noteValue notes a key and, for inline tables, the keys below it.
func noteValue(lines map[string]int, parser *unstable.Parser, node *unstable.Node, table string) {
	path, line := nodeKey(parser, node, table)
	note(lines, path, line)
	if value := node.Value(); value.Kind == unstable.InlineTable {
		members := value.Children()
		for members.Next() {
			noteValue(lines, parser, members.Node(), path)
		}
	}
	for i := strings.LastIndexByte(path, '.'); i > 0; i = strings.LastIndexByte(path[:i], '.') {
		note(lines, path[:i], line)
	}
}

func nodeKey(parser *unstable.Parser, node *unstable.Node, table string) (path string, line int) {
	parts := node.Key()
	for parts.Next() {
		part := parts.Node()
		if line == 0 {
			line = parser.Shape(part.Raw).Start.Line
		}
		if table != "" {
			table += "."
		}
		table += string(part.Data)
	}
	return table, line
}

// indexed puts the index of the newest entry behind each list of tables that
// a path goes through.
func indexed(path string, counts map[string]int) string {
	out := ""
	for _, part := range strings.Split(path, ".") {
		if out != "" {
			out += "."
		}
		out += part
		if n := counts[out]; n > 0 {
			out = fmt.Sprintf("%s[%d]", out, n-1)
		}
	}
	return out
}
