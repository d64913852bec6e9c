package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// wrong puts lines under a valid file's head, so that the golden line numbers stay small.
func wrong(lines ...string) string { return strings.Join(lines, "\n") + "\n" }

const (
	okStores = `stores: [{name: main, source: /srv/vhd, mount: /vhd}]`
	okTarget = `target: {url: "https://a.blob.core.windows.net/c"}`
)

// Golden messages: they are what the operator gets, to the letter.
var golden = []struct {
	name, text string
	want       []string
}{
	{"unknown key, near", wrong(okStores, okTarget, "control_sockt: /run/x"), []string{
		`t.yaml:3:1: unknown key "control_sockt", did you mean "control_socket"?`}},
	{"unknown key, far", wrong(okStores, okTarget, "resync:", "  frobnicate: 1"), []string{
		`t.yaml:4:3: resync: unknown key "frobnicate"; known are overflow, scrub, threshold, window`}},
	{"unknown key in a VM", wrong("stores:", "  - name: main", "    source: /srv/vhd", "    mount: /vhd", "    vms:",
		"      - name: web", "        intervall: 5s", okTarget), []string{
		`t.yaml:7:9: stores[0].vms[0]: unknown key "intervall", did you mean "interval"?`}},
	{"a misspelt key is not missing too", wrong("stores: [{name: a, sorce: /s, mount: /m}]", "taget: {url: dir:///x}"), []string{
		`t.yaml:1:20: stores[0]: unknown key "sorce", did you mean "source"?`,
		`t.yaml:2:1: unknown key "taget", did you mean "target"?`}},
	{"duplicate keys", wrong(okStores, "target:", "  url: dir:///a", "  url: dir:///b", "state_dir: /a", "state_dir: /b"), []string{
		`t.yaml:4:3: target.url: duplicate key, first given in line 3`,
		`t.yaml:6:1: state_dir: duplicate key, first given in line 5`}},
	{"ranges", wrong(okStores, okTarget, "replication:", "  interval: 1s", "  apply_interval: 25h", "  recovery_points: {daily: 9999d}",
		"  spool_limit: 1MiB", "bandwidth: [{limit: 10}]", "resync: {threshold: 1.5}"), []string{
		`t.yaml:4:13: replication.interval: 1s is out of range: 5s … 24h`,
		`t.yaml:5:19: replication.apply_interval: 25h is out of range: 1s … 24h`,
		`t.yaml:6:28: replication.recovery_points.daily: 9999d is out of range: 0s … 3650d`,
		`t.yaml:7:16: replication.spool_limit: 1MiB is out of range: 0, or 16MiB … 1PiB`,
		`t.yaml:8:21: bandwidth[0].limit: 10 is out of range: 16KiB … 1TiB`,
		`t.yaml:9:21: resync.threshold: 1.5 is out of range: 0.01 … 1`}},
	{"kinds of values", wrong(okStores, okTarget, "replication: 5", "bandwidth: {limit: 5MiB}", "resync:", "  window: [mon]",
		"  threshold: {a: b}", "metrics_listen:"), []string{
		`t.yaml:3:14: replication: must be a mapping of keys, not a single value`,
		`t.yaml:4:12: bandwidth: must be a list, not a mapping`,
		`t.yaml:6:11: resync.window: must be a mapping of keys, not a list`,
		`t.yaml:7:14: resync.threshold: must be a single value, not a mapping`,
		`t.yaml:8:1: metrics_listen: has no value`}},
	{"unparsable values", wrong(okStores, okTarget, "replication: {interval: 30, tracking: maybe, spool_limit: 5 apples}",
		"bandwidth:", "  - {from: 25:00, to: 8, days: [], limit: -5}", "resync: {threshold: half}"), []string{
		`t.yaml:3:25: replication.interval: "30" is not a duration such as 30s, 5m, 2h or 7d`,
		`t.yaml:3:39: replication.tracking: "maybe" is neither on nor off`,
		`t.yaml:3:59: replication.spool_limit: "5 apples" is not a size such as 1048576, 512MiB or 10GiB`,
		`t.yaml:5:12: bandwidth[0].from: "25:00" is not a time of day, 00:00 … 24:00`,
		`t.yaml:5:23: bandwidth[0].to: "8" is not a time of day, 00:00 … 24:00`,
		`t.yaml:5:32: bandwidth[0].days: names no day; leave it out for every day`,
		`t.yaml:5:43: bandwidth[0].limit: "-5" is not a size such as 1048576, 512MiB or 10GiB`,
		`t.yaml:6:21: resync.threshold: "half" is not a number`}},
	{"enumerations", wrong(okStores, `target: {url: "https://a.b/c", credentials: {type: shared-key}}`, "replication: {compression: zip}",
		"resync: {overflow: later, window: {days: [monday]}}"), []string{
		`t.yaml:2:52: target.credentials.type: "shared-key" is none of default, connection_string, shared_key, sas; did you mean "shared_key"?`,
		`t.yaml:3:28: replication.compression: "zip" is none of off, fastest, default, better, best`,
		`t.yaml:4:20: resync.overflow: "later" is none of now, window`,
		`t.yaml:4:43: resync.window.days[0]: "monday" is none of mon, tue, wed, thu, fri, sat, sun`}},
	{"relative paths", wrong("state_dir: var", "stores:", "  - {name: a, source: srv, mount: ./vhd}", okTarget), []string{
		`t.yaml:1:12: state_dir: "var" is not an absolute path`,
		`t.yaml:3:23: stores[0].source: "srv" is not an absolute path`,
		`t.yaml:3:35: stores[0].mount: "./vhd" is not an absolute path`}},
	{"nothing at all", "", []string{
		`t.yaml: stores: no store is configured: give at least one, with name, source and mount`,
		`t.yaml: target.url: is missing: https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX] or dir:///PATH`}},
	{"an incomplete store", wrong("stores:", "  - vms: [{disks: [a]}]", okTarget), []string{
		`t.yaml:2:5: stores[0].name: is missing`,
		`t.yaml:2:5: stores[0].source: is missing: the directory that holds the disk images`,
		`t.yaml:2:5: stores[0].mount: is missing: the directory at which virtual machines open them`,
		`t.yaml:2:11: stores[0].vms[0].name: is missing`}},
	{"mount inside source", wrong("stores:", "  - {name: a, source: /srv, mount: /srv/vhd}", okTarget), []string{
		`t.yaml:2:36: stores[0].mount: /srv/vhd lies inside stores[0].source /srv`}},
	{"directories that nest", wrong("state_dir: /s/b/state", "stores:", "  - {name: a, source: /s/a, mount: /m/a/deep}",
		"  - {name: b, source: /s/b, mount: /m/a}", "  - {name: c, source: /s/c, mount: /s/c}", okTarget), []string{
		`t.yaml:1:12: state_dir: /s/b/state lies inside stores[1].source /s/b`,
		`t.yaml:4:36: stores[1].mount: /m/a contains stores[0].mount /m/a/deep`,
		`t.yaml:5:36: stores[2].mount: is the same directory as stores[2].source`}},
	{"names given twice", wrong("stores:", "  - {name: a, source: /s/a, mount: /m/a, vms: [{name: web}, {name: web}]}",
		"  - {name: a, source: /s/b, mount: /m/b, vms: [{name: web}]}", okTarget), []string{
		`t.yaml:2:68: stores[0].vms[1].name: "web" is already the name of stores[0].vms[0]`,
		`t.yaml:3:12: stores[1].name: "a" is already the name of stores[0]`,
		`t.yaml:3:55: stores[1].vms[0].name: "web" is already the name of stores[0].vms[0]`}},
	{"names and globs", wrong("stores:", "  - name: a/b", "    source: /s", "    mount: /m",
		`    vms: [{name: "..", disks: ["/abs", "../up", "[", ""], exclude: ["a//b"]}]`, okTarget), []string{
		`t.yaml:2:11: stores[0].name: "a/b" is no name: 1 … 255 bytes, without slashes and control characters`,
		`t.yaml:5:18: stores[0].vms[0].name: ".." is no name: 1 … 255 bytes, without slashes and control characters`,
		`t.yaml:5:32: stores[0].vms[0].disks[0]: "/abs" must be a plain path relative to the store's source`,
		`t.yaml:5:40: stores[0].vms[0].disks[1]: "../up" must be a plain path relative to the store's source`,
		`t.yaml:5:49: stores[0].vms[0].disks[2]: "[" is not a pattern: * ? [a-z] and \ as in a shell`,
		`t.yaml:5:54: stores[0].vms[0].disks[3]: "" is not a pattern: * ? [a-z] and \ as in a shell`,
		`t.yaml:5:69: stores[0].vms[0].exclude[0]: "a//b" must be a plain path relative to the store's source`}},
	{"addresses", wrong(okStores, okTarget, "control_socket: /"+strings.Repeat("x", 120), "metrics_listen: here"), []string{
		`t.yaml:3:17: control_socket: is 121 bytes long, a unix socket's path has at most 107`,
		`t.yaml:4:17: metrics_listen: "here" is not host:port`}},
	{"credentials without a file", wrong(okStores, "target:", `  url: "https://a.blob.core.windows.net/c"`, "  credentials:", "    type: sas"), []string{
		`t.yaml:5:5: target.credentials.file: is missing: credentials of type sas are read from a file`}},
	{"anchors, tags, documents", wrong("state_dir: &a /x", "control_socket: !!str /y", okStores, okTarget), []string{
		`t.yaml:1:1: state_dir: anchors and aliases are not supported`,
		`t.yaml:2:1: control_socket: tags are not supported`}},
	{"two documents", wrong(okStores, okTarget, "---", "state_dir: /x"), []string{
		`t.yaml:4:1: a second document: the file must hold one`}},
	{"no mapping", "- a\n- b\n", []string{
		`t.yaml:1:1: must be a mapping of keys, not a list`}},
	{"syntax", wrong(okStores, "target: {url: ["), []string{`t.yaml:2:15: sequence end token ']' not found`}},
}

func TestGoldenErrors(t *testing.T) {
	for _, c := range golden {
		t.Run(c.name, func(t *testing.T) {
			config, err := Parse("t.yaml", []byte(c.text))
			if err == nil {
				t.Fatalf("accepted: %+v", config)
			}
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			if got := strings.Split(err.Error(), "\n"); !slices.Equal(got, c.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
		})
	}
}

func TestTargetURLs(t *testing.T) {
	const (
		secret    = "must carry no user, query or fragment: a secret belongs into credentials.file"
		container = "names no container: https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]"
		directory = "must name a directory by its absolute path: dir:///mnt/nas/replicas"
	)
	for url, want := range map[string]string{
		"https://a.blob.core.windows.net/c":            "",
		"https://a.blob.core.windows.net/c/p/q":        "",
		"https://a.blob.core.usgovcloudapi.net/c/":     "",
		"https://10.1.2.3/account/c":                   "",
		"http://127.0.0.1:10000/devstoreaccount1/c":    "",
		"http://[::1]:10000/devstoreaccount1/c":        "",
		"http://localhost:10000/devstoreaccount1/c/p":  "",
		"dir:///mnt/nas":                               "",
		"https://a.blob.core.windows.net":              container,
		"https://a.blob.core.windows.net/":             container,
		"https:///c":                                   container,
		"http://127.0.0.1:10000/devstoreaccount1":      container,
		"https://10.1.2.3/account":                     container,
		"http://a.blob.core.windows.net/c":             "http is for an emulator on a loopback address only; use https for a.blob.core.windows.net",
		"http://127.0.0.1.example.org/acc/c":           "http is for an emulator on a loopback address only; use https for 127.0.0.1.example.org",
		"https://a.blob.core.windows.net/c?sig=secret": secret,
		"https://user:pw@a.blob.core.windows.net/c":    secret,
		"dir:///mnt#x":                                 secret,
		"dir://mnt/nas":                                directory,
		"dir:///":                                      directory,
		"dir:mnt":                                      directory,
		"/mnt/nas":                                     `"" is none of https, http, dir`,
		"s3://bucket/x":                                `"s3" is none of https, http, dir`,
		"https://a b/c?sig=secret":                     "is not a URL",
	} {
		_, err := LoadTargetOnly("", url)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", url, err)
		case want != "" && (err == nil || err.Error() != "--target: target.url: "+want):
			t.Errorf("%s: %v, want %s", url, err, want)
		}
	}
}

func TestErrorsUnwrapToTheirMembers(t *testing.T) {
	_, err := Parse("t.yaml", []byte("a: 1\nb: 2\n"))
	var one *Error
	if !errors.As(err, &one) || one.Line != 0 && one.Line != 1 {
		t.Errorf("%v has no *Error of the first place", err)
	}
	var all Errors
	if !errors.As(err, &all) || len(all) != 4 {
		t.Errorf("%v, want 4 errors", err)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"kitten", "sitting", 3}, {"ab", "ba", 2}, {"mout", "mount", 1}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestNearestStaysSilentWhenNothingIsNear(t *testing.T) {
	candidates := []string{"source", "mount", "name", "vms"}
	for name, want := range map[string]string{"sorce": "source", "Mount": "mount", "nmae": "", "path": "", "x": "", "vm": "vms", "": ""} {
		if got := nearest(name, candidates); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestParent(t *testing.T) {
	var chain []string
	for k := "stores[0].vms[1].name"; k != ""; k = parent(k) {
		chain = append(chain, k)
	}
	want := "[stores[0].vms[1].name stores[0].vms[1] stores[0].vms stores[0] stores]"
	if got := fmt.Sprint(chain); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Whatever is in the file, the answer is a configuration or errors that name the file; never a panic.
func FuzzParse(f *testing.F) {
	for _, text := range []string{design, full, minimal} {
		f.Add(text)
	}
	for _, c := range golden {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("t.yaml", []byte(text))
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err != nil && (!errors.Is(err, ErrInvalid) || !strings.HasPrefix(fmt.Sprint(err), "t.yaml")) {
			t.Fatalf("%v", err)
		}
	})
}
