package config

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

var seed = flag.Uint64("seed", 0, "seed of the random configurations; 0 takes one from the clock")

// generator makes valid configurations.
type generator struct{ *rand.Rand }

func newGenerator(t *testing.T) generator {
	t.Helper()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test -run %s ./appliance/config -seed %d", t.Name(), s)
	return generator{rand.New(rand.NewPCG(s, 1))}
}

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

func some[T any](g generator, v T) *T {
	if g.IntN(2) == 0 {
		return nil
	}
	return &v
}

func (g generator) seconds(low, high time.Duration) time.Duration {
	return low + time.Duration(g.Int64N(int64((high-low)/time.Second)+1))*time.Second
}

func (g generator) compression() Compression {
	return pick(g, CompressionOff, CompressionFastest, CompressionDefault, CompressionBetter, CompressionBest)
}

func (g generator) size(low, high int64, zero bool) int64 {
	if zero && g.IntN(3) == 0 {
		return 0
	}
	return low + g.Int64N(high-low+1)
}

func (g generator) window() Window {
	return Window{Days: Days(1 + g.IntN(int(EveryDay))), From: TimeOfDay(g.IntN(24*60 + 1)), To: TimeOfDay(g.IntN(24*60 + 1))}
}

// name includes what YAML would like to take for something else.
func (g generator) name(i int) string {
	return fmt.Sprintf("%s%d", pick(g, "web", "off", "null", "a: b", "- x", "#", "1e", "0x", "ä", "'", `"`, "{", "*"), i)
}

func (g generator) vm(i int) VM {
	vm := VM{Name: g.name(i), Overrides: Overrides{
		Interval: some(g, g.seconds(MinInterval, MaxInterval)), ApplyInterval: some(g, g.seconds(MinApplyInterval, MaxApplyInterval)),
		Dense: some(g, g.seconds(0, MaxRetention)), Hourly: some(g, g.seconds(0, MaxRetention)), Daily: some(g, g.seconds(0, MaxRetention)),
		Compression: some(g, g.compression()), SpoolLimit: some(g, g.size(MinSpoolLimit, MaxSpoolLimit, true)), Tracking: some(g, g.IntN(2) == 0),
	}}
	for range g.IntN(3) {
		vm.Disks = append(vm.Disks, pick(g, "*.vhd", "web/os.vhd", "[a-z]*/d?.img", "true", `a\*b`))
		vm.Exclude = append(vm.Exclude, pick(g, "swap.img", "tmp/*", "~"))
	}
	return vm
}

func (g generator) config() *Config {
	c := Default()
	c.Path, c.StateDir, c.ControlSocket = "t.yaml", pick(g, "/var/lib/x", "/a b", "/ä"), pick(g, "/run/c.sock", "/run/#x")
	vms := 0
	for i := range 1 + g.IntN(3) {
		s := Store{Name: g.name(i), Source: fmt.Sprintf("/srv/%d", i), Mount: fmt.Sprintf("/mnt/%d", i)}
		for range g.IntN(3) {
			s.VMs = append(s.VMs, g.vm(vms))
			vms++
		}
		c.Stores = append(c.Stores, s)
	}
	c.Target = pick(g,
		Target{URL: "dir:///mnt/nas", Credentials: Credentials{Type: CredentialDefault}},
		Target{URL: "https://a.blob.core.windows.net/c", CAFile: "/etc/ca.pem", Credentials: Credentials{CredentialSAS, "/run/s"}},
		Target{URL: "http://127.0.0.1:1/a/c/p", Credentials: Credentials{CredentialSharedKey, "/run/k"}})
	everything := g.vm(0).Overrides
	c.Replication = everything.Over(c.Replication)
	for range g.IntN(3) {
		c.Bandwidth = append(c.Bandwidth, Bandwidth{g.window(), g.size(MinBandwidthLimit, MaxBandwidthLimit, false)})
	}
	c.MetricsListen = pick(g, "", "127.0.0.1:9469", "[::1]:9469", ":80")
	c.Resync = Resync{g.window(), float64(1+g.IntN(100)) / 100, pick(g, OverflowNow, OverflowWindow), pick(g, 0, MinScrub, 30*Day)}
	return c
}

// What can be said in a Config can be said in a file, and says the same again.
func TestRandomRoundTrip(t *testing.T) {
	g := newGenerator(t)
	for range 300 {
		c := g.config()
		text, err := c.Marshal()
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		again, err := Parse("t.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v\nbecame\n%+v\nthrough\n%s", c, again, text)
		}
	}
}

// place is a scalar of a file.
type place struct {
	text         string
	line, column int
}

type collector struct{ places []place }

func (c *collector) Visit(n ast.Node) ast.Visitor {
	if entry, ok := n.(*ast.MappingValueNode); ok {
		if s, ok := entry.Value.(ast.ScalarNode); ok {
			tk := s.GetToken()
			c.places = append(c.places, place{tk.Value, tk.Position.Line, tk.Position.Column})
		}
	}
	return c
}

// scalars returns the plain scalars that stand alone at the end of a line of the full file.
func scalars(t *testing.T, text string) []place {
	t.Helper()
	file, err := parser.ParseBytes([]byte(text), 0)
	if err != nil {
		t.Fatal(err)
	}
	var c collector
	ast.Walk(&c, file.Docs[0].Body)
	lines := strings.Split(text, "\n")
	var alone []place
	for _, p := range c.places {
		if strings.HasSuffix(lines[p.line-1], ": "+p.text) {
			alone = append(alone, p)
		}
	}
	return alone
}

// replace puts another value in the place of a scalar that ends its line.
func replace(text string, p place, with string) string {
	lines := strings.Split(text, "\n")
	lines[p.line-1] = strings.TrimSuffix(lines[p.line-1], p.text) + with
	return strings.Join(lines, "\n")
}

// Every value of the file, replaced by what it cannot be, is refused in its own line and column.
func TestEveryValueIsRefusedWhereItStands(t *testing.T) {
	places := scalars(t, full)
	if len(places) < 25 {
		t.Fatalf("found only %d values", len(places))
	}
	for _, p := range places {
		for name, with := range map[string]string{"a mapping": "{x: y}", "a list": "[x]", "an alias": "*x", "a tag": "!!str x"} {
			_, err := Parse("t.yaml", []byte(replace(full, p, with)))
			var all Errors
			if !errors.As(err, &all) {
				t.Errorf("line %d, %s: accepted, or %v", p.line, name, err)
				continue
			}
			first := all[0]
			if first.Line != p.line {
				t.Errorf("line %d, %s: complained about in line %d: %v", p.line, name, first.Line, first)
			}
			if (name == "a mapping" || name == "a list") && first.Column != p.column {
				t.Errorf("line %d, %s: column %d, want %d: %v", p.line, name, first.Column, p.column, first)
			}
		}
	}
}

// Every key of the file, misspelt, is refused in its own line, and the right one is suggested.
func TestEveryMisspeltKeyIsFoundAndSuggested(t *testing.T) {
	for i, line := range strings.Split(full, "\n") {
		key, _, ok := strings.Cut(strings.TrimLeft(line, " -"), ":")
		if !ok || len(key) < 4 || strings.ContainsAny(key, "{[") {
			continue
		}
		misspelt := key[:len(key)-2] + key[len(key)-1:]
		lines := strings.Split(full, "\n")
		lines[i] = strings.Replace(line, key, misspelt, 1)
		_, err := Parse("t.yaml", []byte(strings.Join(lines, "\n")))
		var all Errors
		if !errors.As(err, &all) {
			t.Errorf("%s: accepted", misspelt)
			continue
		}
		want := fmt.Sprintf("unknown key %q, did you mean %q?", misspelt, key)
		found := false
		for _, e := range all {
			found = found || e.Line == i+1 && e.Message == want
		}
		if !found {
			t.Errorf("%s in line %d: %v", misspelt, i+1, err)
		}
	}
}

// Every section that is left out is its default; every line of the minimal file is needed.
func TestTopLevelKeysAreOptionalButTwo(t *testing.T) {
	sections := map[string]string{}
	name := ""
	for line := range strings.Lines(design) {
		if key, _, ok := strings.Cut(line, ":"); ok && line[0] != ' ' {
			name = key
		}
		sections[name] += line
	}
	for name := range sections {
		if name == "" {
			continue
		}
		var rest strings.Builder
		for other, text := range sections {
			if other != name {
				rest.WriteString(text)
			}
		}
		_, err := Parse("t.yaml", []byte(rest.String()))
		if needed := name == "stores" || name == "target"; (err != nil) != needed {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// Names that YAML takes for something else must come back as themselves.
func TestNamesThatLookLikeOtherThings(t *testing.T) {
	for _, name := range []string{"null", "~", "true", "off", "1", "1e3", "0x1f", "1_000", ".5", "2026-03-01", "12:30", "<<", "---", "a #b", " x ", "!", "%", "@", "`", "|", ">", "\\", "'\"", "{}", "[]", ",", "?", "-", "=", ".nan", "é"} {
		c := Default()
		c.Path, c.Stores, c.Target.URL = "t.yaml", []Store{{Name: name, Source: "/s", Mount: "/m"}}, "dir:///x"
		text, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("t.yaml", text)
		if err != nil || again.Stores[0].Name != name {
			t.Errorf("%q: %+v, %v\n%s", name, again, err, text)
		}
	}
}
