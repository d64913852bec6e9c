package config

import (
	"errors"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Load reads the file at path. Its error is an *Error if the file cannot be read, else Errors; both are ErrInvalid.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	return Parse(path, data)
}

// Parse reads a configuration from memory; path is for its errors.
func Parse(path string, data []byte) (*Config, error) {
	c, r := decode(path, data)
	if !r.broken {
		r.checking = true
		r.check(c)
	}
	return r.result(c)
}

// LoadTargetOnly reads what the commands need that run without a daemon: the target. The rest of the file may be missing
// or wrong, because the day on which they are needed is the wrong day to insist. A url other than "" replaces the file's;
// without a path there is no file and the url is all there is.
func LoadTargetOnly(path, url string) (*Config, error) {
	c, r := Default(), &reader{path: "--target"}
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, unreadable(path, err)
		}
		c, r = decode(path, data)
		if !r.broken {
			r.errs = r.errs.of("target")
		}
	}
	if url != "" {
		c.Target.URL = url
		// It stands in no line of the file.
		r.at = map[string]*token.Position{"target.url": {}}
	}
	if !r.broken {
		r.checking = true
		r.checkTarget(c.Target)
	}
	return r.result(c)
}

func (r *reader) result(c *Config) (*Config, error) {
	r.errs.sort()
	if len(r.errs) > 0 {
		return nil, r.errs
	}
	return c, nil
}

func unreadable(path string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &Error{Path: path, Message: "cannot be read: " + err.Error(), Err: err}
}

// of keeps the errors of a section.
func (es Errors) of(section string) Errors {
	var kept Errors
	for _, e := range es {
		if e.Key == section || strings.HasPrefix(e.Key, section+".") {
			kept = append(kept, e)
		}
	}
	return kept
}

func decode(path string, data []byte) (*Config, *reader) {
	c, r := Default(), &reader{path: path, at: map[string]*token.Position{}, meant: map[string]bool{}}
	c.Path = path
	// Duplicate keys are let through here because the walk reports them, all of them, and with the first one's line.
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		r.syntax(err)
		return c, r
	}
	body := r.document(file)
	if body != nil && !r.broken {
		r.at[""] = position(body)
		r.config(value{node: body}, c)
	}
	return c, r
}

func (r *reader) syntax(err error) {
	e := &Error{Path: r.path, Message: err.Error(), Err: err}
	var at yaml.Error
	if errors.As(err, &at) {
		e.Message = at.GetMessage()
		if t := at.GetToken(); t != nil && t.Position != nil {
			e.Line, e.Column = t.Position.Line, t.Position.Column
		}
	}
	r.errs = append(r.errs, e)
	r.broken = true
}

// document returns the one document of the file, nil for an empty file.
func (r *reader) document(file *ast.File) ast.Node {
	var body ast.Node
	for _, d := range file.Docs {
		switch {
		case d.Body == nil:
		case body != nil:
			r.fail(position(d.Body), "", "a second document: the file must hold one")
			r.broken = true
		default:
			body = d.Body
		}
	}
	return body
}
