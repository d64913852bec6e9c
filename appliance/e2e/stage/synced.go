package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

const (
	syncedVM     = "synced"
	syncedSize   = 8 << 20 // of a disk, all of it data
	syncedOff    = 4<<20 + 8192
	syncedLen    = 4096
	syncedRegion = syncedOff >> 22
	lostName     = "unsynced.raw" // the control: what is written to it a power cut may take
	noDiskName   = "note"
)

// way is one of making a write durable before it is answered. Each has a disk of its own: a sync of one file must not
// help another.
type way struct {
	name  string
	write func(path string, data []byte) error
	zero  bool  // the range reads zero afterwards, and not data
	off   int64 // 0: syncedOff
}

var ways = []way{
	{name: "o-dsync.raw", write: opened(unix.O_DSYNC, 0)},
	{name: "o-sync.raw", write: opened(unix.O_SYNC, 0)},
	{name: "rwf-dsync.raw", write: opened(0, unix.RWF_DSYNC)},
	{name: "rwf-sync.raw", write: opened(0, unix.RWF_SYNC)},
	{name: "direct-dsync.raw", write: opened(unix.O_DIRECT|unix.O_DSYNC, 0)},
	{name: "fsync.raw", write: then(unix.Fsync)},
	{name: "fdatasync.raw", write: then(unix.Fdatasync)},
	{name: "msync.raw", write: mapped},
	{name: "punch.raw", write: punched, zero: true},
	{name: "grow.raw", write: grown, off: syncedSize},
	{name: noDiskName, write: opened(unix.O_DSYNC, 0)},
}

func (w way) at() int64 {
	if w.off > 0 {
		return w.off
	}
	return syncedOff
}

// with opens a file for a way and closes it after.
func with(path string, flags int, do func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(fd), unix.Close(fd))
}

func put(fd int, data []byte, off int64, flags int) error {
	n, err := unix.Pwritev2(fd, [][]byte{data}, off, flags)
	if err == nil && n != len(data) {
		err = fmt.Errorf("a write of %d bytes wrote %d", len(data), n)
	}
	return err
}

func opened(flags, rwf int) func(string, []byte) error {
	return func(path string, data []byte) error {
		return with(path, flags, func(fd int) error { return put(fd, data, syncedOff, rwf) })
	}
}

func then(sync func(int) error) func(string, []byte) error {
	return func(path string, data []byte) error {
		return with(path, 0, func(fd int) error { return errors.Join(put(fd, data, syncedOff, 0), sync(fd)) })
	}
}

func mapped(path string, data []byte) error {
	return with(path, 0, func(fd int) error {
		m, err := unix.Mmap(fd, syncedOff, len(data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		copy(m, data)
		return errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	})
}

func punched(path string, data []byte) error {
	return with(path, 0, func(fd int) error {
		return errors.Join(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, syncedOff, int64(len(data))), unix.Fsync(fd))
	})
}

// grown appends: the new size must be durable too.
func grown(path string, data []byte) error {
	return with(path, unix.O_APPEND|unix.O_DSYNC, func(fd int) error {
		_, err := unix.Write(fd, data)
		return err
	})
}

// Synced writes in every way that is durable when it is answered and cuts the power at once: what was answered is in
// the store, and in a region that the next start finds suspect.
func Synced(ctx context.Context, e *Env, r *Report) (err error) {
	dir, err := e.fresh("synced")
	if err != nil {
		return err
	}
	target, err := e.target(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	host := &rig.Loop{File: filepath.Join(dir, "host.img"), Dir: filepath.Join(dir, "host")}
	if err := errors.Join(host.Format(ctx, 1<<30), host.Mount(ctx)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Unmount()) }()
	// Without a seal between write and cut nothing but the write itself can have synced it.
	appliance, err := rig.New(rig.Options{
		Dir: dir, Binary: e.Binary, URL: target.URL, Key: target.Key, Interval: time.Hour,
		Source: filepath.Join(host.Dir, "source"), State: filepath.Join(host.Dir, "state"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, appliance.Close()) }()
	s := &syncer{rig: appliance, host: host, report: r}
	return s.run(ctx)
}

// alignedPage is what O_DIRECT takes.
func alignedPage(b byte) []byte {
	data := bytes.Repeat([]byte{b}, 2*syncedLen)
	skip := syncedLen - int(uintptr(unsafe.Pointer(&data[0]))%syncedLen)
	return data[skip : skip+syncedLen]
}

type syncer struct {
	rig    *rig.Rig
	host   *rig.Loop
	report *Report
}

func (s *syncer) names() []string {
	names := []string{lostName}
	for _, w := range ways {
		names = append(names, w.name)
	}
	return names
}

func (s *syncer) source(name string) string { return filepath.Join(s.rig.Source, syncedVM, name) }

func (s *syncer) run(ctx context.Context) error {
	if err := os.MkdirAll(s.source(""), 0o700); err != nil {
		return err
	}
	for _, name := range s.names() {
		if err := os.WriteFile(s.source(name), bytes.Repeat([]byte{0xee}, syncedSize), 0o600); err != nil {
			return err
		}
	}
	unix.Sync() // allocated: a commit of the file system's own journal takes no data along
	if err := s.rig.Start(ctx); err != nil {
		return err
	}
	if _, err := s.rig.Sync(ctx, syncedVM); err != nil {
		return err
	}
	data := alignedPage(0x5d)
	if err := s.writeAll(data); err != nil {
		return err
	}
	if err := s.cut(ctx); err != nil {
		return err
	}
	active, err := s.active(ctx)
	if err != nil {
		return err
	}
	s.judge(data, active)
	return s.recovered(ctx, active)
}

// writeAll writes the control first: it has as much time as any to become durable by itself.
func (s *syncer) writeAll(data []byte) error {
	mount := filepath.Join(s.rig.Mount, syncedVM)
	if err := opened(0, 0)(filepath.Join(mount, lostName), data); err != nil {
		return err
	}
	for _, w := range ways {
		if err := w.write(filepath.Join(mount, w.name), data); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// cut is a power cut and the host's coming back, without the appliance.
func (s *syncer) cut(ctx context.Context) error {
	if err := errors.Join(keepHeartbeat(s.rig), s.host.Cut(), s.rig.Kill(), s.host.Unmount()); err != nil {
		return err
	}
	return s.host.Mount(ctx)
}

// active lists the regions of each disk that the activity log has, by the disk's name, as `journal dump` prints it.
func (s *syncer) active(ctx context.Context) (map[string][][2]int64, error) {
	dump, err := s.rig.Run(ctx, "journal", "dump")
	if err != nil {
		return nil, err
	}
	return parseActive(string(dump))
}

// parseActive reads the lines of disks, which have their names, and of active regions, "act/DISK [FROM,TO)".
func parseActive(dump string) (map[string][][2]int64, error) {
	names, regions := map[string]string{}, map[string][][2]int64{}
	for line := range strings.Lines(dump) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		kind, id, _ := strings.Cut(key, "/")
		switch kind {
		case "disk":
			var record struct{ Name string }
			if err := json.Unmarshal([]byte(value), &record); err != nil {
				return nil, fmt.Errorf("journal dump: %w: %s", err, line)
			}
			names[filepath.Base(id)] = record.Name
		case "act":
			var r [2]int64
			if _, err := fmt.Sscanf(value, "[%d,%d)", &r[0], &r[1]); err != nil {
				return nil, fmt.Errorf("journal dump: %w: %s", err, line)
			}
			regions[id] = append(regions[id], r)
		}
	}
	byName := map[string][][2]int64{}
	for id, r := range regions {
		byName[names[id]] = r
	}
	return byName, nil
}

// judge wants what was answered to be there, and its region to be active. What was not synced must be lost: else the cut
// proves nothing.
func (s *syncer) judge(data []byte, active map[string][][2]int64) {
	for _, w := range ways {
		want := data
		if w.zero {
			want = make([]byte, len(data))
		}
		if got, err := s.stored(w.name, w.at()); err != nil || !bytes.Equal(got, want) {
			s.report.Fail("%s: an answered write is lost after the power cut: %v", w.name, err)
		}
		if w.name != noDiskName && !covers(active[w.name], w.at()>>22) {
			s.report.Fail("%s: region %d is not in the activity log, which has %v", w.name, w.at()>>22, active[w.name])
		}
	}
	if got, err := s.stored(lostName, syncedOff); err != nil || bytes.Equal(got, data) {
		s.report.Fail("the power cut took not even what nobody had synced: %v", err)
	}
	if !covers(active[lostName], syncedRegion) {
		s.report.Fail("%s: a write came before its region was in the activity log", lostName)
	}
}

func (s *syncer) stored(name string, off int64) ([]byte, error) {
	f, err := os.Open(s.source(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	got := make([]byte, syncedLen)
	_, err = f.ReadAt(got, off)
	return got, err
}

func covers(regions [][2]int64, region int64) bool {
	for _, r := range regions {
		if r[0] <= region && region < r[1] {
			return true
		}
	}
	return false
}

// recovered starts the appliance: exactly the active regions are suspect, and a point is what the store holds.
func (s *syncer) recovered(ctx context.Context, active map[string][][2]int64) error {
	if err := s.rig.Start(ctx); err != nil {
		return err
	}
	vm, err := s.rig.VM(ctx, syncedVM)
	if err != nil {
		return err
	}
	var want int64
	for _, regions := range active {
		for _, r := range regions {
			want += (r[1] - r[0]) << 22
		}
	}
	s.report.Figure("synced writes", "%d ways, %d MiB active at the cut, %d MiB suspect of %d", len(ways), want>>20, vm.Recovery.SuspectBytes>>20, len(ways)*syncedSize>>20)
	if vm.Recovery.SuspectBytes > want {
		s.report.Fail("%d bytes are suspect, the active regions have %d", vm.Recovery.SuspectBytes, want)
	}
	result, err := s.rig.Sync(ctx, syncedVM)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.rig.Dir, "export")
	if err := s.rig.Export(ctx, syncedVM, result.Point, dir); err != nil {
		return err
	}
	for _, name := range s.names() {
		if name != noDiskName {
			s.report.Check(command(ctx, "cmp", rig.Exported(dir, name), s.source(name)), "point %s, %s", result.Point, name)
		}
	}
	return nil
}
