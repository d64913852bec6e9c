package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrInvalid is what every error of this package is, for errors.Is.
var ErrInvalid = errors.New("invalid configuration")

// Error is one thing wrong with the file.
type Error struct {
	// Path is the file; Line and Column count from 1, both 0 when the whole file is meant.
	Path         string
	Line, Column int
	// Key is where in the document, e.g. "stores[0].mount"; "" for the document itself.
	Key     string
	Message string
	Err     error
}

// Error returns file:line:column: key: message, as compilers and editors like it.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Path)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	b.WriteString(": " + e.Message)
	return b.String()
}

// Is reports that every Error is ErrInvalid.
func (e *Error) Is(target error) bool { return target == ErrInvalid }

// Unwrap returns the cause, such as the error of opening the file.
func (e *Error) Unwrap() error { return e.Err }

// Errors are all things wrong with the file, in the order of its lines.
type Errors []*Error

// Error returns one line for each.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the members.
func (es Errors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

func (es Errors) sort() {
	slices.SortStableFunc(es, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// nearest returns the candidate that name was most likely meant to be, or "" if none is near: at most a third of the
// letters, and never more than three, may be wrong.
func nearest(name string, candidates []string) string {
	best, limit := "", min(3, max(1, len(name)/3))+1
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if d := distance(strings.ToLower(name), c); d < limit {
			best, limit = c, d
		}
	}
	return best
}

// distance is Levenshtein's: the fewest bytes to insert, delete or replace that turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
