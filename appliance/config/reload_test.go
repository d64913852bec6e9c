package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// edited returns the full file with one text replaced by another.
func edited(t *testing.T, old, with string) *Config {
	t.Helper()
	if !strings.Contains(full, old) {
		t.Fatalf("the full file lacks %q", old)
	}
	return parseOK(t, strings.Replace(full, old, with, 1))
}

func TestReloadNamesWhatNeedsARestart(t *testing.T) {
	running := parseOK(t, full)
	for _, c := range []struct {
		old, with string
		want      []string
	}{
		{"state_dir: /var/lib/relay/", "state_dir: /var/lib/other", []string{"state_dir"}},
		{"/run/relay.sock", "/run/other.sock", []string{"control_socket"}},
		{"mount: /vhd/fast", "mount: /vhd/faster", []string{"stores[0]"}},
		{"source: /srv/slow", "source: /srv/slower", []string{"stores[1]"}},
		{"name: db01", "name: db02", []string{"stores[0]"}},
		{"web01/*.vhd", "web01/*.img", []string{"stores[0]"}},
		{"- web01/swap.vhd", "- web01/tmp.vhd", []string{"stores[0]"}},
		{"  - name: slow\n    source: /srv/slow\n    mount: /vhd/slow\n", "", []string{"stores"}},
		{"devstoreaccount1/container", "devstoreaccount1/other", []string{"target"}},
		{`metrics_listen: ""`, "metrics_listen: :9469", []string{"metrics_listen"}},
		{"interval: 24h", "interval: 12h", nil},
		{"interval: 5s", "interval: 10s", nil},
		{"limit: 10MiB", "limit: 20MiB", nil},
		{"overflow: window", "overflow: now", nil},
		{"scrub: 30d", "scrub: 10d", nil},
	} {
		_, restart := running.Reload(edited(t, c.old, c.with))
		if !slices.Equal(restart, c.want) {
			t.Errorf("%s → %s: %v, want %v", c.old, c.with, restart, c.want)
		}
	}
}

func TestReloadPutsTheLiveKeysInForce(t *testing.T) {
	running := parseOK(t, full)
	before := parseOK(t, full)
	next := edited(t, "interval: 5s", "interval: 10s")
	next.Replication.Interval, next.StateDir, next.Target.URL = time.Hour, "/elsewhere", "dir:///elsewhere"
	next.Bandwidth, next.Resync.Threshold = nil, 0.75
	got, restart := running.Reload(next)
	if !slices.Equal(restart, []string{"state_dir", "target"}) {
		t.Errorf("restart for %v", restart)
	}
	if got.EffectiveReplication("web01").Interval != 10*time.Second || got.EffectiveReplication("db01").Interval != time.Hour ||
		got.Bandwidth != nil || got.Resync.Threshold != 0.75 {
		t.Errorf("not in force: %+v", got)
	}
	if got.StateDir != before.StateDir || got.Target != before.Target {
		t.Errorf("changed under a running appliance: %+v", got)
	}
	if !reflect.DeepEqual(running, before) {
		t.Error("Reload changed the configuration that is running")
	}
}

// A store that moved keeps what it runs with, while its neighbour's new keys hold.
func TestReloadJudgesStoresOneByOne(t *testing.T) {
	running := parseOK(t, full)
	next := edited(t, "mount: /vhd/slow", "mount: /vhd/slower")
	next.Stores[0].VMs[0].Overrides.Interval = nil
	got, restart := running.Reload(next)
	if !slices.Equal(restart, []string{"stores[1]"}) || got.Stores[1].Mount != "/vhd/slow" {
		t.Errorf("%v, %+v", restart, got.Stores[1])
	}
	if got.EffectiveReplication("web01").Interval != 24*time.Hour {
		t.Errorf("%+v", got.EffectiveReplication("web01"))
	}
}

func TestReloadOfTheSameChangesNothing(t *testing.T) {
	running := parseOK(t, full)
	got, restart := running.Reload(parseOK(t, full))
	if len(restart) != 0 || !reflect.DeepEqual(got, running) {
		t.Errorf("%v, %+v", restart, got)
	}
}
