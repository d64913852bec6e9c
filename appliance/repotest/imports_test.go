package repotest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// owners says which of our directories may import a foreign package directly. Each stage owns one dependency, so that it
// can be judged, replaced or upgraded in one place. A foreign package without an owner is not allowed at all.
var owners = []struct {
	foreign string
	dirs    []string
}{
	{"github.com/hanwen/go-fuse", []string{"fs"}},
	{"github.com/dgraph-io/badger", []string{"journal/kv"}},
	{"github.com/Azure/azure-sdk-for-go", []string{"shipper/pageblob"}},
	{"github.com/klauspost/compress", []string{"shipper/segment"}},
	{"github.com/minio/crc64nvme", []string{"resync/checksum"}},
	{"github.com/goccy/go-yaml", []string{"appliance/config"}},
	{"github.com/prometheus/client_golang", []string{"appliance/metrics"}},
	{"github.com/spf13/cobra", []string{"appliance/cli"}},
	{"github.com/coreos/go-systemd", []string{"systemd"}},
	{"golang.org/x/sys", anywhere},
	{"golang.org/x/sync", anywhere},
	{"golang.org/x/time", anywhere},
	{"github.com/google/uuid", anywhere},
}

var anywhere = []string{"fs", "journal", "shipper", "resync", "appliance", "systemd"}

// The HTTP of the standard library has owners as well: the Azure target's transport, and the appliance.
var httpOwners = []string{"shipper/pageblob", "appliance"}

// leaves are shared by all stages, and import only what stands here.
var leaves = map[string][]string{
	"journal/extent":          {},
	"journal/durable":         {},
	"journal/durable/platter": {"journal/durable"},
	"resync/checksum":         {"journal/extent", "journal/durable"},
	"fs/image":                {"journal/extent"},
	"fs/image/vhd":            {"journal/extent", "fs/image"},
	"fs/image/vhdx":           {"journal/extent", "fs/image"},
	"fs/image/chain":          {"journal/extent", "fs/image", "fs/image/vhd", "fs/image/vhdx"},
	"fs/image/formats":        {"journal/extent", "fs/image", "fs/image/vhd", "fs/image/vhdx"},
	"shipper/segment":         {"journal/extent", "resync/checksum"},
}

var stages = []string{"fs", "journal", "shipper", "resync"}

func TestDirectImports(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports { // a test may wire what appliance wires
			if err := allowed(p.rel(), imported); err != nil {
				t.Errorf("%s: %v", p.rel(), err)
			}
		}
	}
}

// allowed judges one direct import of the package at from.
func allowed(from, imported string) error {
	switch {
	case imported == module || strings.HasPrefix(imported, module+"/"):
		return allowedOurs(from, rel(imported))
	case imported == "net/http" || strings.HasPrefix(imported, "net/http/"):
		if !below(from, httpOwners...) {
			return fmt.Errorf("%s is for %v", imported, httpOwners)
		}
	case strings.Contains(strings.Split(imported, "/")[0], "."):
		return allowedForeign(from, imported)
	}
	return nil
}

func allowedForeign(from, imported string) error {
	for _, o := range owners {
		if !below(imported, o.foreign) {
			continue
		}
		if below(from, o.dirs...) {
			return nil
		}
		return fmt.Errorf("%s is for %v: go through what they offer", imported, o.dirs)
	}
	return fmt.Errorf("%s has no owner: do without, or give it one in imports_test.go and say why", imported)
}

func allowedOurs(from, imported string) error {
	if may, isLeaf := leaves[from]; isLeaf {
		if imported != from && !slices.Contains(may, imported) {
			return fmt.Errorf("a leaf, it may import %v of ours and not %s", may, imported)
		}
		return nil
	}
	fromTop, importedTop := top(from), top(imported)
	_, isLeaf := leaves[imported]
	switch {
	case fromTop == importedTop, fromTop == "appliance":
		return nil
	case slices.Contains(stages, fromTop) && isLeaf:
		return nil
	case slices.Contains(stages, fromTop):
		return fmt.Errorf("%s is another stage's: declare the small interface that is needed and let appliance wire it", imported)
	default:
		return fmt.Errorf("may import nothing of ours, %s is", imported)
	}
}

func top(dir string) string { return strings.SplitN(dir, "/", 2)[0] }

// The rules are worth nothing if they let everything through.
func TestImportRulesRefuse(t *testing.T) {
	for _, c := range []struct {
		from, imported string
		ok             bool
	}{
		{"fs", "github.com/hanwen/go-fuse/v2/fuse", true},
		{"journal", "github.com/hanwen/go-fuse/v2/fuse", false},
		{"journal/kv", "github.com/dgraph-io/badger/v4", true},
		{"shipper", "github.com/dgraph-io/badger/v4", false},
		{"shipper/dir", "github.com/Azure/azure-sdk-for-go/sdk/azcore", false},
		{"shipper", "github.com/stretchr/testify", false},
		{"shipper", module + "/journal", false},
		{"shipper", module + "/journal/extent", true},
		{"shipper/spool", module + "/shipper/segment", true},
		{"journal/extent", module + "/resync/checksum", false},
		{"resync/checksum", module + "/journal/extent", true},
		{"fs", module + "/appliance", false},
		{"systemd", module + "/journal/extent", false},
		{"appliance/cli", module + "/shipper/restore", true},
		{"journal", "net/http", false},
		{"journal", "net/http/httptest", false},
		{"appliance/control", "net/http", true},
		{"journal", "golang.org/x/sys/unix", true},
		{"journal", "encoding/json", true},
		{"shipper/segmentation", "github.com/klauspost/compress/zstd", false},
	} {
		if err := allowed(c.from, c.imported); (err == nil) != c.ok {
			t.Errorf("%s imports %s: %v, want ok=%v", c.from, c.imported, err, c.ok)
		}
	}
}
