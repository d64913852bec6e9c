package fs

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestEveryVerbHasAVerdict: a method that go-fuse adds to RawFileSystem fails here until it is in Verbs.
func TestEveryVerbHasAVerdict(t *testing.T) {
	listed := map[string]Verdict{}
	for _, v := range Verbs {
		if _, twice := listed[v.Name]; twice {
			t.Errorf("%s is listed twice", v.Name)
		}
		listed[v.Name] = v.Verdict
	}
	raw := reflect.TypeFor[fuse.RawFileSystem]()
	for m := range raw.Methods() {
		if listed[m.Name] == "" {
			t.Errorf("%s has no verdict: decide in verbs.go whether it can change a disk", m.Name)
		}
		delete(listed, m.Name)
	}
	for name := range listed {
		t.Errorf("%s is listed and no verb", name)
	}
}

// TestStoreEmbedsNothing: an embedded default or loopback type could answer a verb without us.
func TestStoreEmbedsNothing(t *testing.T) {
	s := reflect.TypeFor[store]()
	for f := range s.Fields() {
		if f.Anonymous {
			t.Errorf("store embeds %s", f.Type)
		}
	}
}

// TestReadmeListsEveryVerb keeps the table in the README and the one in the code together.
func TestReadmeListsEveryVerb(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range Verbs {
		if row := "| " + v.Name + " | " + string(v.Verdict) + " | " + v.Note + " |"; !strings.Contains(string(readme), row) {
			t.Errorf("README.md lacks the row %q", row)
		}
	}
}
