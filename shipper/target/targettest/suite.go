// Package targettest is the conformance suite of package target. Every
// implementation runs it against an empty target of its own:
//
//	func TestConformance(t *testing.T) {
//		targettest.Run(t, func(t *testing.T) target.Target { return fake.New(fake.Options{}) })
//	}
package targettest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// New returns a target, empty or with nothing below a prefix of its own.
type New func(t *testing.T) target.Target

// Options say where an implementation or an emulator is known to be laxer than
// the contract.
type Options struct {
	// Skip names subtests that are left out, each with the reason.
	Skip map[string]string
	// Scale is the size in bytes of the blob of the random test; 0: 1 MiB.
	Scale int64
}

type test struct {
	name string
	run  func(t *testing.T, e env)
}

// Run runs the whole suite, each test on a target of its own.
func Run(t *testing.T, fresh New) { RunWith(t, fresh, Options{}) }

// RunWith is Run with options.
func RunWith(t *testing.T, fresh New, opts Options) {
	tests := concat(objectTests, pageTests, guardTests, leaseTests, snapshotTests, errorTests)
	tests = append(tests, test{"Random", func(t *testing.T, e env) { runRandom(t, e, opts.Scale) }})
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			if reason, ok := opts.Skip[c.name]; ok {
				t.Skipf("laxer than the contract: %s", reason)
			}
			c.run(t, env{t: t, ctx: t.Context(), Target: fresh(t)})
		})
	}
}

func concat(groups ...[]test) []test {
	var all []test
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

// env is one test's target with the calls that must succeed.
type env struct {
	t   *testing.T
	ctx context.Context
	target.Target
}

const (
	leaseA = "aaaaaaaa-0000-4000-8000-000000000001"
	leaseB = "bbbbbbbb-0000-4000-8000-000000000002"
)

func (e env) ok(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// fails checks that err is the sentinel, in a *target.Error that says so.
func (e env) fails(err, sentinel error) {
	e.t.Helper()
	if !errors.Is(err, sentinel) {
		e.t.Fatalf("got %v, want %v", err, sentinel)
	}
	var te *target.Error
	if !errors.As(err, &te) {
		e.t.Fatalf("%T is no *target.Error: %v", err, err)
	}
	if te.Op == "" || te.Code == "" {
		e.t.Fatalf("error without operation or code: %#v", te)
	}
	if te.Outcome != target.Known {
		e.t.Fatalf("refused, but the outcome is unknown: %v", err)
	}
}

func (e env) createPages(name string, size int64) {
	e.t.Helper()
	e.ok(e.CreatePages(e.ctx, name, size, 0))
}

func (e env) put(name string, off int64, data []byte, g target.Guard) error {
	return e.PutPages(e.ctx, name, off, data, checksum.Of(data), g)
}

func (e env) read(name, snapshot string, off, n int64) []byte {
	e.t.Helper()
	p := fill(int(n), 0xEE) // what is not written must be seen
	e.ok(e.ReadPages(e.ctx, name, snapshot, off, p))
	return p
}

func (e env) properties(name string) target.Properties {
	e.t.Helper()
	p, err := e.Properties(e.ctx, name, "")
	e.ok(err)
	return p
}

func (e env) list(prefix string) []target.Item {
	e.t.Helper()
	var items []target.Item
	for item, err := range e.List(e.ctx, prefix) {
		e.ok(err)
		items = append(items, item)
	}
	return items
}

func (e env) equal(what string, got, want any) {
	e.t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		e.t.Fatalf("%s: got %.200s, want %.200s", what, g, w)
	}
}

func fill(n int, b byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = b
	}
	return p
}

// random is n bytes of a stream of its own.
func random(n int, seed uint64) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	p := make([]byte, n)
	_, _ = r.Read(p) // never fails
	return p
}
