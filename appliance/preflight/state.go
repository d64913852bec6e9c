package preflight

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

const (
	// minSpool is the least a VM's spool can be of use with, in bytes.
	minSpool = 64 << 20
	// entryBytes is what the checksum table takes a block.
	entryBytes = 8
	// syncTries are how many synced writes are timed.
	syncTries = 20
	// syncSlow is worth a word; from syncDead on the journal gives up waiting (DESIGN §3).
	syncSlow = 20 * time.Millisecond
	syncDead = time.Second
)

// state looks at the directory of journal, tables and spool: its room and how fast it makes a small write durable, for
// a first write to a region waits for that.
func (r *run) state(images []disk) {
	dir := existing(r.Config.StateDir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		r.fail("state-space", "create state_dir, or correct it in the config", "%s: %v", r.Config.StateDir, err)
		return
	}
	r.room(int64(st.Bavail)*st.Bsize, images)
	r.syncs(dir)
	for _, s := range r.Config.Stores {
		if sameDevice(dir, s.Source) {
			r.warn("state-disk", "put state_dir on a disk of its own if you can", "%s is on the file system of store %s: what it writes slows the guests", r.Config.StateDir, s.Name)
		}
	}
}

// existing is the directory, or the nearest one above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func sameDevice(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Dev == y.Dev
}

// room compares what is free with the tables and with spools of half the virtual size, of which all together may take
// half of what is free.
func (r *run) room(free int64, images []disk) {
	var virtual int64
	vms := map[string]bool{}
	for _, d := range images {
		virtual += d.info.VirtualSize
		vms[d.vm] = true
	}
	tables := virtual / extent.BlockSize * entryBytes
	least := tables + 2*minSpool*int64(len(vms))
	full := tables + virtual
	switch {
	case free < least:
		r.fail("state-space", "give the disk of state_dir more room", "%s free for state, %s is the least for %d VMs of %s", size(free), size(least), len(vms), size(virtual))
	case free < full:
		r.warn("state-space", "give the disk of state_dir more room, or accept that a long outage pauses the points earlier",
			"%s free for state; %s would hold changes of half of %s", size(free), size(full), size(virtual))
	default:
		r.pass("state-space", "%s free for state, %s of disks", size(free), size(virtual))
	}
}

func (r *run) syncs(dir string) {
	times, err := syncTimes(dir)
	if err != nil {
		r.fail("state-latency", "look at the disk of state_dir and its permissions", "a synced write in %s: %v", dir, err)
		return
	}
	slices.Sort(times)
	median, worst := times[len(times)/2], times[len(times)-1]
	text := fmt.Sprintf("a synced write takes %v, the slowest of %d took %v", median.Round(10*time.Microsecond), len(times), worst.Round(10*time.Microsecond))
	switch {
	case median >= syncDead:
		r.fail("state-latency", "put state_dir on another disk", "%s: the journal would be given up", text)
	case median >= syncSlow || worst >= syncDead:
		r.warn("state-latency", "put state_dir on a faster disk: a guest's first write to a region waits for it", "%s", text)
	default:
		r.pass("state-latency", "%s", text)
	}
}

func syncTimes(dir string) (times []time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".preflight-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	page := make([]byte, extent.BlockSize)
	for i := range syncTries {
		begin := time.Now()
		if _, err := f.WriteAt(page, int64(i)*extent.BlockSize); err != nil {
			return nil, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		times = append(times, time.Since(begin))
	}
	return times, nil
}
