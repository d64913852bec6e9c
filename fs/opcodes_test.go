package fs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// goFuse is what the source of go-fuse says about opcodes.
type goFuse struct {
	numbers  map[string]int      // by the name without _OP_
	handlers map[string]string   // the function for each
	calls    map[string][]string // of a function: methods of RawFileSystem
}

func readGoFuse(t *testing.T) goFuse {
	t.Helper()
	g := goFuse{numbers: map[string]int{}, handlers: map[string]string{}, calls: map[string][]string{}}
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", reflect.TypeFor[fuse.RawFileSystem]().PkgPath()).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, name := range []string{"opcode.go", "opcode_linux.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, g.visit)
	}
	return g
}

const opPrefix = "_OP_"

func (g goFuse) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ValueSpec:
		if op, ok := strings.CutPrefix(n.Names[0].Name, opPrefix); ok {
			g.numbers[op] = number(n)
		}
	case *ast.KeyValueExpr: // _OP_OPEN: doOpen
		op, isOp := strings.CutPrefix(ident(n.Key), opPrefix)
		if strings.HasPrefix(ident(n.Value), "do") && isOp {
			g.handlers[op] = ident(n.Value)
		}
	case *ast.AssignStmt: // operationHandlers[_OP_STATX] = &operationHandler{Func: doStatx}
		g.assigned(n)
	case *ast.FuncDecl:
		if strings.HasPrefix(n.Name.Name, "do") {
			g.calls[n.Name.Name] = methods(n)
		}
	}
	return true
}

func (g goFuse) assigned(a *ast.AssignStmt) {
	index, ok := a.Lhs[0].(*ast.IndexExpr)
	if !ok {
		return
	}
	op, isOp := strings.CutPrefix(ident(index.Index), opPrefix)
	ast.Inspect(a.Rhs[0], func(n ast.Node) bool {
		if kv, ok := n.(*ast.KeyValueExpr); ok && isOp && ident(kv.Key) == "Func" {
			g.handlers[op] = ident(kv.Value)
		}
		return true
	})
}

// number reads the literal of uint32(1), or of 48.
func number(v *ast.ValueSpec) (value int) {
	for _, e := range v.Values {
		ast.Inspect(e, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok {
				value, _ = strconv.Atoi(lit.Value)
			}
			return true
		})
	}
	return value
}

func ident(e ast.Expr) string {
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// methods lists what a handler calls of the file system.
func methods(f *ast.FuncDecl) []string {
	var found []string
	ast.Inspect(f, func(n ast.Node) bool {
		if call, ok := n.(*ast.SelectorExpr); ok {
			if of, ok := call.X.(*ast.SelectorExpr); ok && of.Sel.Name == "fileSystem" {
				found = append(found, call.Sel.Name)
			}
		}
		return true
	})
	return found
}

// notifications go from the server to the kernel and have numbers of go-fuse's own.
const notifications = 100

// TestEveryOpcodeHasItsVerb: the table is go-fuse's, number by number, and its handlers call the verbs that it names.
func TestEveryOpcodeHasItsVerb(t *testing.T) {
	g := readGoFuse(t)
	if len(g.numbers) < 50 || len(g.handlers) < 40 {
		t.Fatalf("go-fuse's source is not understood any more: %d opcodes, %d handlers", len(g.numbers), len(g.handlers))
	}
	listed := map[string]bool{}
	for _, o := range Opcodes {
		listed[o.Name] = true
		if got, ok := g.numbers[o.Name]; !ok || got != o.Number {
			t.Errorf("%s: number %d, in go-fuse %d (%v)", o.Name, o.Number, got, ok)
		}
		calls := g.calls[g.handlers[o.Name]]
		if o.Verb != "" && !slices.Contains(calls, o.Verb) || o.Verb == "" && len(calls) > 0 {
			t.Errorf("%s: verb %q, go-fuse calls %q", o.Name, o.Verb, calls)
		}
		if (o.Verb == "") == (o.Note == "") {
			t.Errorf("%s: a verb or a note, not %q and %q", o.Name, o.Verb, o.Note)
		}
	}
	for name, n := range g.numbers {
		if !listed[name] && n < notifications {
			t.Errorf("opcode %s (%d) is not in the table: decide what happens to it", name, n)
		}
	}
}

// TestEveryVerbHasAnOpcode: a verb that no request leads to is one that concerns the server, or has a reason.
func TestEveryVerbHasAnOpcode(t *testing.T) {
	asked := map[string]bool{"Write": true} // go-fuse asks Writev first, see its doWrite
	for _, o := range Opcodes {
		asked[o.Verb] = true
	}
	for _, v := range Verbs {
		if !asked[v.Name] && v.Verdict != Serves {
			t.Errorf("%s: no opcode asks it", v.Name)
		}
	}
}
