package targettest

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

var objectTests = []test{
	{"ObjectCreateGetReplace", testObject},
	{"ObjectEmpty", testEmptyObject},
	{"ObjectCreateExclusive", testCreateExclusive},
	{"ObjectReplaceCompares", testReplaceCompares},
	{"ObjectOneWinner", testOneWinner},
	{"ObjectDelete", testDeleteObject},
	{"ObjectDeleteIf", testDeleteObjectIf},
	{"List", testList},
	{"ListStops", testListStops},
	{"Names", testNames},
	{"NamesRefused", testNamesRefused},
}

func testObject(t *testing.T, e env) {
	etag, err := e.Create(e.ctx, "vm/vm.json", []byte("one"))
	e.ok(err)
	o, err := e.Get(e.ctx, "vm/vm.json")
	e.ok(err)
	e.equal("content", string(o.Data), "one")
	e.equal("etag", o.ETag, etag)
	next, err := e.Replace(e.ctx, "vm/vm.json", []byte("two, longer"), etag)
	e.ok(err)
	o, err = e.Get(e.ctx, "vm/vm.json")
	e.ok(err)
	e.equal("content", string(o.Data), "two, longer")
	e.equal("etag", o.ETag, next)
	if etag == next {
		t.Fatal("the etag did not change with the content")
	}
}

func testEmptyObject(_ *testing.T, e env) {
	_, err := e.Create(e.ctx, "empty", nil)
	e.ok(err)
	o, err := e.Get(e.ctx, "empty")
	e.ok(err)
	e.equal("length", len(o.Data), 0)
}

func testCreateExclusive(_ *testing.T, e env) {
	_, err := e.Create(e.ctx, "points/1-1.json", []byte("first"))
	e.ok(err)
	_, err = e.Create(e.ctx, "points/1-1.json", []byte("second"))
	e.fails(err, target.ErrExists)
	o, err := e.Get(e.ctx, "points/1-1.json")
	e.ok(err)
	e.equal("content", string(o.Data), "first")
	e.fails(e.CreatePages(e.ctx, "points/1-1.json", 512, 0), target.ErrExists)
}

func testReplaceCompares(_ *testing.T, e env) {
	_, err := e.Replace(e.ctx, "none", []byte("x"), `"0x1"`)
	e.fails(err, target.ErrCondition)
	first, err := e.Create(e.ctx, "vm.json", []byte("1"))
	e.ok(err)
	_, err = e.Replace(e.ctx, "vm.json", []byte("2"), first)
	e.ok(err)
	_, err = e.Replace(e.ctx, "vm.json", []byte("3"), first)
	e.fails(err, target.ErrCondition)
	o, err := e.Get(e.ctx, "vm.json")
	e.ok(err)
	e.equal("content", string(o.Data), "2")
}

// testOneWinner: of many creators and replacers of one name exactly one wins, and
// what is read is what the winner wrote.
func testOneWinner(t *testing.T, e env) {
	const n = 8
	etags, errs := make([]string, n), make([]error, n)
	together(n, func(i int) { etags[i], errs[i] = e.Create(e.ctx, "race", bytes.Repeat([]byte{byte('0' + i)}, 1000)) })
	winner := oneWinner(t, e, errs, target.ErrExists)
	o, err := e.Get(e.ctx, "race")
	e.ok(err)
	e.equal("content", string(o.Data), strings.Repeat(string(rune('0'+winner)), 1000))
	base := etags[winner]
	together(n, func(i int) { _, errs[i] = e.Replace(e.ctx, "race", bytes.Repeat([]byte{byte('a' + i)}, 1000), base) })
	winner = oneWinner(t, e, errs, target.ErrCondition)
	o, err = e.Get(e.ctx, "race")
	e.ok(err)
	e.equal("content", string(o.Data), strings.Repeat(string(rune('a'+winner)), 1000))
}

func together(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func oneWinner(t *testing.T, e env, errs []error, loser error) int {
	t.Helper()
	winner := -1
	for i, err := range errs {
		switch {
		case err != nil:
			e.fails(err, loser)
		case winner >= 0:
			t.Fatalf("both %d and %d won", winner, i)
		default:
			winner = i
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	return winner
}

func testDeleteObjectIf(_ *testing.T, e env) {
	e.ok(e.DeleteIf(e.ctx, "never/there", `"0x1"`))
	old, err := e.Create(e.ctx, "a/vm.json", []byte("x"))
	e.ok(err)
	etag, err := e.Replace(e.ctx, "a/vm.json", []byte("y"), old)
	e.ok(err)
	e.fails(e.DeleteIf(e.ctx, "a/vm.json", old), target.ErrCondition)
	o, err := e.Get(e.ctx, "a/vm.json")
	e.ok(err)
	e.equal("what is there", string(o.Data), "y")
	e.ok(e.DeleteIf(e.ctx, "a/vm.json", etag))
	e.ok(e.DeleteIf(e.ctx, "a/vm.json", etag))
	_, err = e.Get(e.ctx, "a/vm.json")
	e.fails(err, target.ErrNotFound)
}

func testDeleteObject(_ *testing.T, e env) {
	e.ok(e.Delete(e.ctx, "never/there"))
	_, err := e.Create(e.ctx, "pins/a.json", []byte("x"))
	e.ok(err)
	e.ok(e.Delete(e.ctx, "pins/a.json"))
	e.ok(e.Delete(e.ctx, "pins/a.json"))
	_, err = e.Get(e.ctx, "pins/a.json")
	e.fails(err, target.ErrNotFound)
	_, err = e.Create(e.ctx, "pins/a.json", []byte("again"))
	e.ok(err)
}

func testList(t *testing.T, e env) {
	e.equal("empty target", len(e.list("")), 0)
	for _, name := range []string{"vm/points/1-2.json", "vm/points/1-10.json", "vm-2/vm.json", "vm/vm.json", "vm0"} {
		_, err := e.Create(e.ctx, name, []byte(name))
		e.ok(err)
	}
	e.createPages("vm/disk/replica.vhd", 1024)
	_, err := e.Snapshot(e.ctx, "vm/disk/replica.vhd", "", "", nil)
	e.ok(err)
	e.equal("all", names(e.list("")), []string{"vm-2/vm.json", "vm/disk/replica.vhd", "vm/points/1-10.json", "vm/points/1-2.json", "vm/vm.json", "vm0"})
	e.equal("directory", names(e.list("vm/points/")), []string{"vm/points/1-10.json", "vm/points/1-2.json"})
	e.equal("plain prefix", names(e.list("vm/points/1-1")), []string{"vm/points/1-10.json"})
	e.equal("prefix of a directory", names(e.list("vm-")), []string{"vm-2/vm.json"})
	e.equal("nothing", len(e.list("vm/none/")), 0)
	for _, item := range e.list("vm/") {
		pages := item.Name == "vm/disk/replica.vhd"
		size := int64(len(item.Name))
		if pages {
			size = 1024
		}
		if item.Pages != pages || item.Size != size || item.Modified.IsZero() {
			t.Fatalf("item %+v", item)
		}
	}
}

func names(items []target.Item) []string {
	var out []string
	for _, i := range items {
		out = append(out, i.Name)
	}
	return out
}

func testListStops(_ *testing.T, e env) {
	for _, name := range []string{"a", "b", "c"} {
		_, err := e.Create(e.ctx, name, nil)
		e.ok(err)
	}
	for item, err := range e.List(e.ctx, "") {
		e.ok(err)
		e.equal("first", item.Name, "a")
		break
	}
}

// testNames: what package catalog can produce is kept apart and comes back.
func testNames(_ *testing.T, e env) {
	long := strings.Repeat("long-%C3%BC", 60)
	want := []string{"%2F/vm.json", "%2e%2e/x", "A/x", "UPPER%20case/x", "a/x", long + "/" + long[:300] + "/x", "v-_.~%25/x", "vm..x/x"}
	for _, name := range want {
		_, err := e.Create(e.ctx, name, []byte(name))
		e.ok(err)
	}
	e.equal("names", names(e.list("")), want)
	for _, name := range want {
		o, err := e.Get(e.ctx, name)
		e.ok(err)
		e.equal("content", string(o.Data), name)
	}
}

func testNamesRefused(_ *testing.T, e env) {
	for _, name := range []string{"", "/", "/a", "a/", "a//b", "../a", "a/../../b", ".", "a/.", "..", "a\x00b", "a\nb", `..\a`, "\xff", strings.Repeat("x", 1025)} {
		_, err := e.Create(e.ctx, name, []byte("x"))
		e.fails(err, target.ErrName)
		_, err = e.Get(e.ctx, name)
		e.fails(err, target.ErrName)
		e.fails(e.Delete(e.ctx, name), target.ErrName)
		e.fails(e.CreatePages(e.ctx, name, 512, 0), target.ErrName)
	}
	e.equal("left behind", len(e.list("")), 0)
}
