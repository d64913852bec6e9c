package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// reader walks the syntax tree, fills a Config and collects what is wrong.
type reader struct {
	path string
	errs Errors
	// at remembers where each key's value stands, so that checks made after decoding have a line too.
	at map[string]*token.Position
	// meant are the keys that an unknown one was probably meant to be. They are not called missing as well.
	meant map[string]bool
	// checking is set once decoding is over. A key whose value was refused is not complained about a second time then.
	checking bool
	// broken says that the document as a whole could not be read, so that nothing can be said about its keys.
	broken bool
}

// value is a node and the key that leads to it.
type value struct {
	node ast.Node
	key  string
}

// setter decodes a value into the variable it was made for.
type setter func(value)

// fields are the known keys of a mapping.
type fields map[string]setter

// failAt records what is wrong with a key. Without a position of its own the nearest enclosing key lends its.
func (r *reader) failAt(key, format string, args ...any) {
	if r.checking && (r.excused(key) || slices.ContainsFunc(r.errs, func(e *Error) bool { return e.Key == key })) {
		return
	}
	var pos *token.Position
	for k := key; pos == nil; k = parent(k) {
		pos = r.at[k]
		if k == "" {
			break
		}
	}
	r.fail(pos, key, format, args...)
}

// excused reports whether the key or what encloses it stands in the file under a misspelt name.
func (r *reader) excused(key string) bool {
	for k := key; k != ""; k = parent(k) {
		if r.meant[k] {
			return true
		}
	}
	return false
}

func (r *reader) fail(pos *token.Position, key, format string, args ...any) {
	e := &Error{Path: r.path, Key: key, Message: fmt.Sprintf(format, args...)}
	if pos != nil {
		e.Line, e.Column = pos.Line, pos.Column
	}
	r.errs = append(r.errs, e)
}

// parent returns the key that encloses key: "stores[0].mount" → "stores[0]" → "stores" → "".
func parent(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

func join(key, field string) string {
	if key == "" {
		return field
	}
	return key + "." + field
}

// mapping decodes a mapping of known keys. A null is an empty one: a section all of whose keys are commented out.
func (r *reader) mapping(v value, known fields) {
	entries, ok := r.entries(v)
	if !ok {
		return
	}
	seen := map[string]*token.Position{}
	for _, e := range entries {
		name, pos := e.Key.GetToken().Value, e.Key.GetToken().Position
		key := join(v.key, name)
		set, isKnown := known[name]
		switch first := seen[name]; {
		case first != nil:
			r.fail(pos, key, "duplicate key, first given in line %d", first.Line)
		case !isKnown:
			r.unknown(pos, v.key, name, known)
		default:
			seen[name] = pos
			r.at[key] = pos
			r.set(set, value{e.Value, key})
		}
	}
}

// set remembers the position of the value, which is better than its key's, and decodes it.
func (r *reader) set(set setter, v value) {
	v.node = r.resolve(v)
	if v.node == nil {
		return
	}
	if _, isNull := v.node.(*ast.NullNode); !isNull {
		r.at[v.key] = position(v.node)
	}
	set(v)
}

// resolve takes off what YAML can wrap around a value. Aliases and tags are refused: a configuration that must be read at
// three in the morning says everything where it stands.
func (r *reader) resolve(v value) ast.Node {
	switch n := v.node.(type) {
	case *ast.AnchorNode, *ast.AliasNode:
		r.failAt(v.key, "anchors and aliases are not supported")
		return nil
	case *ast.TagNode:
		r.failAt(v.key, "tags are not supported")
		return nil
	default:
		return n
	}
}

// entries returns the entries of a mapping, however many the parser found: one entry alone is no MappingNode to it.
func (r *reader) entries(v value) ([]*ast.MappingValueNode, bool) {
	switch n := v.node.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	case *ast.NullNode, nil:
		return nil, true
	default:
		r.failAt(v.key, "must be a mapping of keys, not %s", kind(n))
		r.broken = r.broken || v.key == ""
		return nil, false
	}
}

// list decodes a sequence, each element by what element returns for it. A null is an empty one.
func (r *reader) list(element func(i int) setter) setter {
	return func(v value) {
		switch n := v.node.(type) {
		case *ast.SequenceNode:
			for i, e := range n.Values {
				key := fmt.Sprintf("%s[%d]", v.key, i)
				r.at[key] = position(e)
				r.set(element(i), value{e, key})
			}
		case *ast.NullNode:
		default:
			r.failAt(v.key, "must be a list, not %s", kind(n))
		}
	}
}

// scalar returns the text of a scalar as it was written, quotes resolved. What the text means is decided by the key, not
// by YAML's opinion whether off is a boolean or 18:00 a number.
func (r *reader) scalar(v value) (string, bool) {
	switch n := v.node.(type) {
	case *ast.LiteralNode:
		return strings.TrimSpace(n.Value.Value), true
	case *ast.NullNode:
		r.failAt(v.key, "has no value")
		return "", false
	case ast.ScalarNode:
		return n.GetToken().Value, true
	default:
		r.failAt(v.key, "must be a single value, not %s", kind(n))
		return "", false
	}
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	default:
		return "a single value"
	}
}

// position of a node: of a mapping the first key's, since the parser's own is that of a colon.
func position(n ast.Node) *token.Position {
	switch n := n.(type) {
	case *ast.MappingNode:
		if len(n.Values) > 0 && !n.IsFlowStyle {
			return position(n.Values[0])
		}
	case *ast.MappingValueNode:
		return n.Key.GetToken().Position
	}
	return n.GetToken().Position
}

func (r *reader) unknown(pos *token.Position, key, name string, known fields) {
	names := slices.Sorted(maps.Keys(known))
	near := nearest(name, names)
	if near == "" {
		r.fail(pos, key, "unknown key %q; known are %s", name, strings.Join(names, ", "))
		return
	}
	r.meant[join(key, near)] = true
	r.fail(pos, key, "unknown key %q, did you mean %q?", name, near)
}
