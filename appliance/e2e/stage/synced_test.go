package stage

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// The dump's disks and regions come together by the disk's id.
func TestParseActive(t *testing.T) {
	const dump = `act/d1 [1,3)
act/d1 [7,8)
act/d2 [0,1)
disk/v1/d1 {"name":"a.raw","session":"x"}
disk/v1/d2 {"name":"b with [1,2).vhd"}
epoch/v1 5
version 1
`
	got, err := parseActive(dump)
	want := map[string][][2]int64{"a.raw": {{1, 3}, {7, 8}}, "b with [1,2).vhd": {{0, 1}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"act/d1 nothing\n", "disk/v1/d1 {\n"} {
		if _, err := parseActive(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func TestCovers(t *testing.T) {
	regions := [][2]int64{{1, 3}, {7, 8}}
	for region, want := range map[int64]bool{0: false, 1: true, 2: true, 3: false, 7: true, 8: false} {
		if covers(regions, region) != want {
			t.Errorf("region %d", region)
		}
	}
}

// Every way writes what it says, and a power cut is judged by what the store holds and by the activity log.
func TestSyncedWritesAreJudged(t *testing.T) {
	g := stubbed(t, "exit 0")
	s := &syncer{rig: g.rig, report: g.report}
	if err := os.MkdirAll(s.source(""), 0o700); err != nil {
		t.Fatal(err)
	}
	s.rig.Mount = s.rig.Source
	active := map[string][][2]int64{}
	for _, name := range s.names() {
		if err := os.WriteFile(s.source(name), bytes.Repeat([]byte{0xee}, syncedSize), 0o600); err != nil {
			t.Fatal(err)
		}
		active[name] = [][2]int64{{1, 3}}
	}
	data := alignedPage(0x5d)
	if err := s.writeAll(data); err != nil {
		t.Fatal(err)
	}
	s.judge(data, active)
	failures(t, s.report, "not even what nobody had synced")
	fill(t, s.source(lostName), 0xee)
	s.report = NewReport(s.report.out)
	s.judge(data, active)
	failures(t, s.report)
	fill(t, s.source("o-sync.raw"), 0xee)
	delete(active, "punch.raw")
	active[lostName] = [][2]int64{{0, 1}}
	s.judge(data, active)
	failures(t, s.report, "o-sync.raw: an answered write is lost", "punch.raw: region 1 is not in the activity log", "a write came before its region")
}

func fill(t *testing.T, path string, b byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{b}, syncedLen), syncedOff)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A point that is not what the files are ends the run of fsx.
func TestFsxPointIsJudged(t *testing.T) {
	tools(t, "cmp")
	g := stubbed(t, `case $1 in
sync) echo '{"epoch":1,"point":"1-1"}' ;;
export) mkdir -p "$D/export" && cp "$D"/exported/* "$D/export" ;;
esac`)
	x := &exerciser{env: g.env, rig: g.rig, plain: filepath.Join(g.rig.Dir, "plain")}
	for _, dir := range []string{x.plain, filepath.Join(g.rig.Dir, "exported")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range fsxDisks {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("data"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := x.point(t.Context(), 10); err != nil || x.points != 1 {
		t.Fatalf("%d points, %v", x.points, err)
	}
	if err := os.WriteFile(filepath.Join(x.plain, "b.raw"), []byte("date"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := x.point(t.Context(), 20); err == nil || x.points != 1 {
		t.Fatal("a wrong point counts")
	}
}
