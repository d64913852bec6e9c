package repotest

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// The house numbers, in lines.
const (
	functionMedian, function90, functionMost = 12, 45, 100
	file90, fileMost                         = 350, 800
)

func TestHouseNumbers(t *testing.T) {
	var functions, files []int
	code, tests := 0, 0
	for _, name := range sourceFiles(t) {
		s := parse(t, name, nil)
		lines := s.fset.Position(s.file.FileEnd).Line
		if s.test() || strings.HasPrefix(name, "appliance/e2e/") { // the harness is a test that is no Go test
			tests += lines
		} else {
			code += lines
			files = append(files, lines)
		}
		if lines > fileMost {
			t.Errorf("%s has %d lines, the most is %d", name, lines, fileMost)
		}
		for _, f := range functionLengths(s) {
			if !s.test() {
				functions = append(functions, f.lines)
			}
			if f.lines > functionMost {
				t.Errorf("%s: %s has %d lines, the most is %d", name, f.name, f.lines, functionMost)
			}
		}
	}
	atMost(t, "the median of functions", quantile(functions, 0.5), functionMedian)
	atMost(t, "90 % of functions", quantile(functions, 0.9), function90)
	atMost(t, "90 % of files", quantile(files, 0.9), file90)
	t.Logf("%d lines of code, %d of tests; functions: median %d, 90 %% %d; files: 90 %% %d",
		code, tests, quantile(functions, 0.5), quantile(functions, 0.9), quantile(files, 0.9))
	if tests < code {
		t.Errorf("%d lines of tests for %d of code: at least one a line", tests, code)
	}
}

func atMost(t *testing.T, what string, got, most int) {
	t.Helper()
	if got > most {
		t.Errorf("%s: %d lines, at most %d", what, got, most)
	}
}

type length struct {
	name  string
	lines int
}

func functionLengths(s source) []length {
	var out []length
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			out = append(out, length{f.Name.Name, s.fset.Position(f.End()).Line - s.line(f) + 1})
		}
	}
	return out
}

// quantile of an unsorted list, 0 of an empty one.
func quantile(list []int, q float64) int {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[int(float64(len(list)-1)*q)]
}

func TestQuantile(t *testing.T) {
	list := []int{9, 1, 5, 3, 7}
	if got := quantile(list, 0.5); got != 5 {
		t.Errorf("median = %d, want 5", got)
	}
	if got := quantile(list, 0.9); got != 7 {
		t.Errorf("90 %% = %d, want 7", got)
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing = %d, want 0", got)
	}
}
