package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The sample that make install puts in place is what the documentation says: the
// defaults, and a target that wants its names.
func TestSample(t *testing.T) {
	const path = "../../systemd/vhdrelay.yaml"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.NewReplacer("ACCOUNT", "account", "CONTAINER", "container", "PREFIX", "prefix").Replace(string(text))
	got := parseOK(t, edited)
	want := Default()
	want.Path = "t.yaml"
	want.Stores = []Store{{Name: "main", Source: "/srv/vhd", Mount: "/vhd"}}
	want.Target.URL = "https://account.blob.core.windows.net/container/prefix"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	example := regexp.MustCompile(`(?m)^( *)#  (- |  [a-z]+:)`)
	live := example.ReplaceAllString(strings.NewReplacer("vms: []", "vms:", "bandwidth: []", "bandwidth:").Replace(edited), "$1  $2")
	full := parseOK(t, live)
	if len(full.Stores[0].VMs) != 1 || len(full.Stores[0].VMs[0].Exclude) != 1 || full.BandwidthAt(monday) != 2<<20 {
		t.Errorf("the examples in the comments: %+v, %d bytes a second", full.Stores[0].VMs, full.BandwidthAt(monday))
	}
}

var monday = time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local) // a Monday
