package repotest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// source is one parsed file.
type source struct {
	name string
	fset *token.FileSet
	file *ast.File
}

func (s source) test() bool { return strings.HasSuffix(s.name, "_test.go") }

func (s source) line(n ast.Node) int { return s.fset.Position(n.Pos()).Line }

func parse(t *testing.T, name string, text any) source {
	t.Helper()
	s := source{name: name, fset: token.NewFileSet()}
	var err error
	s.file, err = parser.ParseFile(s.fset, filepath.Join(root, filepath.FromSlash(name)), text, parser.ParseComments)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

// drawers are package names that say nothing of what is inside.
var drawers = []string{"util", "utils", "common", "types", "helpers", "helper", "misc", "base", "shared"}

// The words are put together here, or this file would be its own first finding. /work and /root are where other people's
// machines keep things; a path of one machine helps nobody on another.
var (
	unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)
	machine    = regexp.MustCompile(`"?/(wo` + `rk|ro` + `ot)/[a-z.]`)
)

// ban finds a thing that is not done here. The message names what to do instead.
type ban struct {
	name string
	find func(s source) []finding
}

type finding struct {
	line int
	text string
}

var bans = []ban{
	{"sleep", findSleep}, {"error text", findErrorText}, {"unfinished", findUnfinished}, {"drawer", findDrawer},
	{"exit", findExit}, {"bare mutex", findBareMutex}, {"machine", findMachine},
}

func TestBans(t *testing.T) {
	for _, name := range sourceFiles(t) {
		s := parse(t, name, nil)
		for _, b := range bans {
			for _, f := range b.find(s) {
				t.Errorf("%s:%d: %s", name, f.line, f.text)
			}
		}
	}
}

// calls returns the calls of pkg.fn, by the name the package usually has.
func calls(s source, pkg, fn string) []*ast.CallExpr {
	var found []*ast.CallExpr
	ast.Inspect(s.file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if ok && isSelector(call.Fun, pkg, fn) {
			found = append(found, call)
		}
		return true
	})
	return found
}

func isSelector(e ast.Expr, pkg, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}

func findSleep(s source) []finding {
	var out []finding
	if s.test() {
		for _, c := range calls(s, "time", "Sleep") {
			out = append(out, finding{s.line(c), "a test that sleeps: use testing/synctest, or wait for the event"})
		}
	}
	return out
}

// findErrorText lets tests look at messages: what an operator reads is a promise.
func findErrorText(s source) []finding {
	var out []finding
	if s.test() {
		return nil
	}
	for _, fn := range []string{"Contains", "HasPrefix", "HasSuffix", "EqualFold"} {
		for _, c := range calls(s, "strings", fn) {
			arg, ok := c.Args[0].(*ast.CallExpr)
			if !ok || len(arg.Args) != 0 {
				continue
			}
			if sel, ok := arg.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Error" {
				out = append(out, finding{s.line(c), "judging an error by its text: use errors.Is or errors.As"})
			}
		}
	}
	return out
}

func findUnfinished(s source) []finding {
	var out []finding
	for _, g := range s.file.Comments {
		for _, c := range g.List {
			if word := unfinished.FindString(c.Text); word != "" {
				out = append(out, finding{s.line(c), word + ": finish it, or say in the design what is left out and why"})
			}
		}
	}
	return out
}

func findDrawer(s source) []finding {
	name := strings.TrimSuffix(s.file.Name.Name, "_test")
	if slices.Contains(drawers, name) || slices.Contains(drawers, path.Base(path.Dir(s.name))) {
		return []finding{{1, "package " + name + ": name it by what it provides"}}
	}
	return nil
}

func findExit(s source) []finding {
	var out []finding
	if s.file.Name.Name != "main" && !s.test() {
		for _, c := range calls(s, "os", "Exit") {
			out = append(out, finding{s.line(c), "os.Exit below main: return an error"})
		}
	}
	return out
}

// findBareMutex wants a mutex to be a struct that contains what it guards. One that
// orders work instead of guarding data stands alone, with a comment on what it is
// held over.
func findBareMutex(s source) []finding {
	var out []finding
	ast.Inspect(s.file, func(n ast.Node) bool {
		f, ok := n.(*ast.Field)
		if ok && len(f.Names) > 0 && f.Doc == nil && f.Comment == nil && (isSelector(f.Type, "sync", "Mutex") || isSelector(f.Type, "sync", "RWMutex")) {
			out = append(out, finding{s.line(f), "a bare mutex: mu struct{ sync.Mutex; what it guards }, or a comment on what it orders and what it is held over"})
		}
		return true
	})
	return out
}

func findMachine(s source) []finding {
	var out []finding
	ast.Inspect(s.file, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if ok && lit.Kind == token.STRING && machine.MatchString(lit.Value) {
			out = append(out, finding{s.line(lit), "a path of one machine: " + lit.Value})
		}
		return true
	})
	return out
}

// Each ban must find its own sin, in a file that sins in every way.
func TestBansFind(t *testing.T) {
	text := "package util\n" +
		"import (\"os\"; \"strings\"; \"sync\"; \"time\")\n" +
		"// TO" + "DO: all of it\n" +
		"type s struct { mu sync.Mutex }\n" +
		"func f(err error) bool {\n" +
		"time.Sle" + "ep(1)\n" +
		"_ = \"/wo" + "rk/main\"\n" +
		"return strings.Contains(err.Error(), \"x\") }\n"
	test := parse(t, "x/sin_test.go", text)
	code := parse(t, "x/sin.go", strings.Replace(text, "time.Sle"+"ep(1)", "os.Exit(1)", 1))
	for _, b := range bans {
		if n := len(b.find(test)) + len(b.find(code)); n == 0 {
			t.Errorf("the ban on %s finds nothing", b.name)
		}
	}
	clean := parse(t, "x/clean.go", "package clean\ntype s struct { mu struct { sync.Mutex; n int } }\n")
	for _, b := range bans {
		if f := b.find(clean); len(f) > 0 {
			t.Errorf("the ban on %s finds something in a clean file: %v", b.name, f)
		}
	}
}
