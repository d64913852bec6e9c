package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// design is the file of the design document with every key, and the one store it needs.
const design = `
state_dir: /var/lib/vhdrelay
control_socket: /run/vhdrelay/control.sock
stores:
  - name: main
    source: /srv/vhd            # the real directory, mode 0700
    mount: /vhd                 # what the VMs open
    vms: []
target:
  url: https://account.blob.core.windows.net/container/prefix
  ca_file: ""
  credentials:
    type: default
    file: ""
replication:
  interval: 30s
  apply_interval: 5m
  recovery_points: {dense: 2h, hourly: 24h, daily: 7d}
  compression: fastest
  spool_limit: 0
bandwidth: []
metrics_listen: 127.0.0.1:9469
resync:
  window: {from: "18:00", to: "08:00", days: [mon, tue, wed, thu, fri, sat, sun]}
  threshold: 0.5
  overflow: now
  scrub: 0s
`

// minimal is the least that is valid.
const minimal = `
stores: [{name: main, source: /srv/vhd, mount: /vhd}]
target: {url: "dir:///mnt/nas/replicas"}
`

func parseOK(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("t.yaml", []byte(text))
	if err != nil {
		t.Fatalf("unexpected errors:\n%v", err)
	}
	return c
}

func TestDesignFileIsTheDefaults(t *testing.T) {
	want := Default()
	want.Path = "t.yaml"
	want.Stores = []Store{{Name: "main", Source: "/srv/vhd", Mount: "/vhd"}}
	want.Target.URL = "https://account.blob.core.windows.net/container/prefix"
	if got := parseOK(t, design); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	want.Target.URL = "dir:///mnt/nas/replicas"
	if got := parseOK(t, minimal); !reflect.DeepEqual(got, want) {
		t.Errorf("minimal: got  %+v\nwant %+v", got, want)
	}
}

// full sets every key to something that is not its default.
const full = `
state_dir: /var/lib/relay/
control_socket: /run/relay.sock
stores:
  - name: fast
    source: /srv/fast
    mount: /vhd/fast
    vms:
      - name: web01
        disks: ["web01/*.vhd", "shared/logs.img"]
        exclude:
          - web01/swap.vhd
        interval: 5s
        apply_interval: 1m
        recovery_points: {hourly: 12h}
        compression: off
        spool_limit: 10GiB
        tracking: off
      - name: db01
  - name: slow
    source: /srv/slow
    mount: /vhd/slow
target:
  url: http://127.0.0.1:10000/devstoreaccount1/container
  ca_file: /etc/ssl/extra.pem
  credentials:
    type: sas
    file: /run/credentials/vhdrelay.service/target
replication:
  interval: 24h
  apply_interval: 90s
  recovery_points:
    dense: 0
    hourly: 2d
    daily: 30d12h
  compression: best
  spool_limit: 1_073_741_824
  tracking: on
bandwidth:
  - days: [mon, Fri]
    from: 8:00
    to: 18:30
    limit: 10MiB
  - {from: "22:00", to: "06:00", limit: 5000000}
  - limit: 100 MB
metrics_listen: ""
resync:
  window: {from: 00:00, to: 24:00, days: [sat, sun]}
  threshold: 0.25
  overflow: window
  scrub: 30d
`

func TestEveryKey(t *testing.T) {
	c := parseOK(t, full)
	if c.StateDir != "/var/lib/relay" || c.ControlSocket != "/run/relay.sock" || c.MetricsListen != "" {
		t.Errorf("paths: %q %q, metrics %q", c.StateDir, c.ControlSocket, c.MetricsListen)
	}
	wantTarget := Target{URL: "http://127.0.0.1:10000/devstoreaccount1/container", CAFile: "/etc/ssl/extra.pem",
		Credentials: Credentials{CredentialSAS, "/run/credentials/vhdrelay.service/target"}}
	if c.Target != wantTarget {
		t.Errorf("target: %+v", c.Target)
	}
	wantReplication := Replication{Interval: 24 * time.Hour, ApplyInterval: 90 * time.Second, Compression: CompressionBest,
		Points: RecoveryPoints{0, 48 * time.Hour, 30*Day + 12*time.Hour}, SpoolLimit: 1 << 30, Tracking: true}
	if c.Replication != wantReplication {
		t.Errorf("replication: %+v", c.Replication)
	}
	wantBandwidth := []Bandwidth{
		{Window{1<<time.Monday | 1<<time.Friday, 8 * 60, 18*60 + 30}, 10 << 20},
		{Window{EveryDay, 22 * 60, 6 * 60}, 5_000_000},
		{Window{EveryDay, 0, 0}, 100_000_000},
	}
	if !reflect.DeepEqual(c.Bandwidth, wantBandwidth) {
		t.Errorf("bandwidth: %+v", c.Bandwidth)
	}
	wantResync := Resync{Window{1<<time.Saturday | 1<<time.Sunday, 0, 24 * 60}, 0.25, OverflowWindow, 30 * Day}
	if c.Resync != wantResync {
		t.Errorf("resync: %+v", c.Resync)
	}
	vm := c.Stores[0].VMs[0]
	if !reflect.DeepEqual(vm.Disks, []string{"web01/*.vhd", "shared/logs.img"}) || !reflect.DeepEqual(vm.Exclude, []string{"web01/swap.vhd"}) {
		t.Errorf("vm: %+v", vm)
	}
}

func TestEffectiveReplicationMergesTheVMsKeysOverTheSections(t *testing.T) {
	c := parseOK(t, full)
	want := Replication{Interval: 5 * time.Second, ApplyInterval: time.Minute, Compression: CompressionOff,
		Points: RecoveryPoints{0, 12 * time.Hour, 30*Day + 12*time.Hour}, SpoolLimit: 10 << 30, Tracking: false}
	if got := c.EffectiveReplication("web01"); got != want {
		t.Errorf("web01: %+v, want %+v", got, want)
	}
	for _, vm := range []string{"db01", "nobody-named-it"} {
		if got := c.EffectiveReplication(vm); got != c.Replication {
			t.Errorf("%s: %+v, want the section's", vm, got)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for name, text := range map[string]string{"design": design, "minimal": minimal, "full": full} {
		c := parseOK(t, text)
		out, err := c.Marshal()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := Parse("t.yaml", out)
		if err != nil {
			t.Fatalf("%s: what Marshal wrote is not accepted: %v\n%s", name, err, out)
		}
		if !reflect.DeepEqual(c, again) {
			t.Errorf("%s: %+v became %+v through\n%s", name, c, again, out)
		}
	}
}

func TestEmptySectionsAreTheirDefaults(t *testing.T) {
	c := parseOK(t, minimal+"replication:\nresync:\n  window:\nbandwidth:\n")
	if c.Replication != DefaultReplication() || c.Resync != Default().Resync || c.Bandwidth != nil {
		t.Errorf("%+v", c)
	}
}

func TestLoadReadsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vhdrelay.yaml")
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil || c.Path != path {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestUnreadableFileSaysWhich(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.yaml")
	for name, load := range map[string]func() (*Config, error){
		"Load":           func() (*Config, error) { return Load(path) },
		"LoadTargetOnly": func() (*Config, error) { return LoadTargetOnly(path, "dir:///x") },
	} {
		_, err := load()
		if !errors.Is(err, ErrInvalid) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v is not ErrInvalid and ErrNotExist", name, err)
		}
		if want := path + ": cannot be read: no such file or directory"; err.Error() != want {
			t.Errorf("%s: %q, want %q", name, err, want)
		}
	}
}

// On the day of a disaster nothing but the target may stand in the way.
func TestLoadTargetOnlyForgivesTheRest(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	broken := "stores: [{name: a, sorce: b}]\nresync: {threshold: 7}\nfrobnicate: 1\n"
	for _, c := range []struct{ name, path, url, want, err string }{
		{"only a target", write("target: {url: dir:///a}"), "", "dir:///a", ""},
		{"the rest broken", write(broken + "target: {url: dir:///a}"), "", "dir:///a", ""},
		{"overridden", write(broken + "target: {url: dir:///a}"), "dir:///b", "dir:///b", ""},
		{"overridden, no file", "", "dir:///b", "dir:///b", ""},
		{"override mends a missing one", write("target: {}"), "dir:///b", "dir:///b", ""},
		{"override without target", write("state_dir: /x"), "https://a.example/c", "https://a.example/c", ""},
		{"no target", write(broken), "", "", "c.yaml:1:1: target.url: is missing: https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX] or dir:///PATH"},
		{"bad target", write("target: {url: dir:///a, xx: y}"), "", "", `c.yaml:1:25: target: unknown key "xx"; known are ca_file, credentials, url`},
		{"bad override", write("target: {url: dir:///a}"), "ftp://x/y", "", `c.yaml: target.url: "ftp" is none of https, http, dir`},
		{"bad override, no file", "", "ftp://x/y", "", `--target: target.url: "ftp" is none of https, http, dir`},
		{"syntax", write("target: {url: dir:///a"), "", "", "c.yaml:1:9: could not find flow mapping end token '}'"},
	} {
		got, err := LoadTargetOnly(c.path, c.url)
		switch {
		case c.err != "":
			if err == nil || strings.ReplaceAll(err.Error(), filepath.Dir(c.path)+"/", "") != c.err {
				t.Errorf("%s: error %v, want %s", c.name, err, c.err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case got.Target.URL != c.want:
			t.Errorf("%s: %s, want %s", c.name, got.Target.URL, c.want)
		}
	}
}
