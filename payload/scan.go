package payload

import (
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds how deep objects and arrays may nest. Sensors nest two or
// three levels; 16 frames of recursion cost about 4 KB of stack.
const maxDepth = 16

// A scanner reads one JSON document (RFC 8259) in a single pass and is
// strict: it takes what encoding/json takes, less invalid UTF-8 and lone
// surrogates, which encoding/json would replace and so change what a sensor
// said, and less what nests deeper than maxDepth. Its methods return false
// once anything is wrong, and err then says what.
type scanner struct {
	data    []byte
	pos     int
	num     number // the last that was read
	scratch []byte // holds the last string that had escapes
	err     *Error
}

// fail keeps the first error, at byte offset of the document.
func (s *scanner) fail(offset int, what string) bool {
	if s.err == nil {
		s.err = &Error{Record: -1, Offset: offset, What: what}
	}
	return false
}

// failed is fail with another package's error.
func (s *scanner) failed(offset int, cause error) bool {
	s.fail(offset, "")
	s.err.Err = cause
	return false
}

// peek skips white space and returns the byte after it, which stays unread; 0
// at the end (a NUL is no part of any JSON token, so both fail alike).
func (s *scanner) peek() byte {
	for s.pos < len(s.data) {
		c := s.data[s.pos]
		if c > ' ' || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
		s.pos++
	}
	return 0
}

// unexpected fails, saying what was wanted and what is there instead.
func (s *scanner) unexpected(want string) bool {
	if s.pos >= len(s.data) {
		return s.fail(s.pos, "the payload ends early: want "+want)
	}
	return s.fail(s.pos, "want "+want+", have "+kindOf(s.data[s.pos]))
}

// kindOf names the JSON value that begins with c.
func kindOf(c byte) string {
	switch {
	case c == '"':
		return "a string"
	case c == '{':
		return "an object"
	case c == '[':
		return "an array"
	case c == 't' || c == 'f':
		return "a boolean"
	case c == 'n':
		return "null"
	case c == '-' || c >= '0' && c <= '9':
		return "a number"
	case c > ' ' && c < utf8.RuneSelf:
		return fmt.Sprintf("%q", c)
	}
	return fmt.Sprintf("the byte 0x%02x", c)
}

// end reports whether nothing but white space is left.
func (s *scanner) end() bool {
	s.peek()
	if s.pos < len(s.data) {
		return s.unexpected("the end of the payload, which holds one value")
	}
	return true
}

// next reads the comma or the closing byte after an element, and says
// whether another element follows.
func (s *scanner) next(closing byte) (more, ok bool) {
	switch c := s.peek(); c {
	case ',':
		s.pos++
		return true, true
	case closing:
		s.pos++
		return false, true
	}
	return false, s.unexpected("a comma or " + fmt.Sprintf("%q", closing))
}

// member reads a member's name and its colon. The name is valid until the
// next string is read.
func (s *scanner) member() ([]byte, bool) {
	if s.peek() != '"' {
		return nil, s.unexpected("a member name in double quotes")
	}
	name, ok := s.str()
	if !ok {
		return nil, false
	}
	if s.peek() != ':' {
		return nil, s.unexpected("a colon after the member name")
	}
	s.pos++
	return name, true
}

// anyValue is what a scalar may be. Text without quotes is what people get
// wrong most.
const anyValue = "true, false, null, a number or a string in double quotes"

// literal reads word, whose first byte was seen.
func (s *scanner) literal(word string) bool {
	if len(s.data)-s.pos < len(word) || string(s.data[s.pos:s.pos+len(word)]) != word {
		return s.fail(s.pos, "want "+anyValue)
	}
	s.pos += len(word)
	return true
}

// str reads the string whose opening quote is next. The result is part of
// the document or of the scanner's scratch memory: valid until the next call.
func (s *scanner) str() ([]byte, bool) {
	start := s.pos + 1
	ascii := true
	for i := start; i < len(s.data); i++ {
		switch c := s.data[i]; {
		case c == '"':
			s.pos = i + 1
			if text := s.data[start:i]; ascii || utf8.Valid(text) {
				return text, true
			}
			return nil, s.fail(start-1, "the string is not valid UTF-8")
		case c == '\\':
			return s.escaped(start, i)
		case c < ' ':
			return nil, s.fail(i, fmt.Sprintf("the control character 0x%02x in a string must be escaped", c))
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, s.fail(len(s.data), "the payload ends inside a string")
}

// escaped reads on at the first backslash, byte i, of a string whose text
// begins at start.
func (s *scanner) escaped(start, i int) ([]byte, bool) {
	out := append(s.scratch[:0], s.data[start:i]...)
	for i < len(s.data) {
		c := s.data[i]
		switch {
		case c == '"':
			s.pos, s.scratch = i+1, out
			if !utf8.Valid(out) {
				return nil, s.fail(start-1, "the string is not valid UTF-8")
			}
			return out, true
		case c < ' ':
			return nil, s.fail(i, fmt.Sprintf("the control character 0x%02x in a string must be escaped", c))
		case c != '\\':
			out = append(out, c)
			i++
		default:
			var size int
			if out, size = s.escape(out, i); size == 0 {
				return nil, false
			}
			i += size
		}
	}
	return nil, s.fail(len(s.data), "the payload ends inside a string")
}

// escape appends what the escape at byte i stands for and returns how many
// bytes it has, 0 where it is wrong.
func (s *scanner) escape(out []byte, i int) ([]byte, int) {
	if i+1 >= len(s.data) {
		s.fail(len(s.data), "the payload ends inside a string")
		return out, 0
	}
	switch c := s.data[i+1]; c {
	case '"', '\\', '/':
		return append(out, c), 2
	case 'b':
		return append(out, '\b'), 2
	case 'f':
		return append(out, '\f'), 2
	case 'n':
		return append(out, '\n'), 2
	case 'r':
		return append(out, '\r'), 2
	case 't':
		return append(out, '\t'), 2
	case 'u':
		return s.unicode(out, i)
	}
	s.fail(i, `unknown escape: JSON has \" \\ \/ \b \f \n \r \t and \u0000`)
	return out, 0
}

// unicode does the work of escape for \uXXXX and for pairs of surrogates.
func (s *scanner) unicode(out []byte, i int) ([]byte, int) {
	r := s.hex4(i)
	if r < 0 {
		s.fail(i, `want four hexadecimal digits after \u`)
		return out, 0
	}
	if !utf16.IsSurrogate(r) {
		return utf8.AppendRune(out, r), 6
	}
	if low := s.hex4(i + 6); low >= 0 {
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return utf8.AppendRune(out, pair), 12
		}
	}
	s.fail(i, "a lone surrogate is no character")
	return out, 0
}

// hex4 returns the code unit of the \uXXXX at byte i, -1 where none is there.
func (s *scanner) hex4(i int) rune {
	if i+6 > len(s.data) || s.data[i] != '\\' || s.data[i+1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range s.data[i+2 : i+6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// skip reads one value of any kind, checks its syntax and forgets it. depth
// is how many objects and arrays are open around it.
func (s *scanner) skip(depth int) bool {
	c := s.peek()
	switch c {
	case '"':
		_, ok := s.str()
		return ok
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	case '{', '[':
		return s.skipNested(c, depth+1)
	}
	return s.number()
}

func (s *scanner) skipNested(opening byte, depth int) bool {
	if depth > maxDepth {
		return s.tooDeep()
	}
	closing := opening + 2 // both '[' and '{' lie two before their partner
	s.pos++
	if s.peek() == closing {
		s.pos++
		return true
	}
	for more := true; more; {
		if opening == '{' {
			if _, ok := s.member(); !ok {
				return false
			}
		}
		if !s.skip(depth) {
			return false
		}
		var ok bool
		if more, ok = s.next(closing); !ok {
			return false
		}
	}
	return true
}

func (s *scanner) tooDeep() bool {
	return s.fail(s.pos, fmt.Sprintf("objects and arrays nest deeper than %d levels: flatten them", maxDepth))
}
