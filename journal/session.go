package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// beatSize is the fixed size of the heartbeat file: one write replaces it.
const beatSize = 256

// beatLag is how far a heartbeat found in a later boot may be behind the last
// one written: the kernel writes dirty pages back after 30 s (its
// dirty_expire_centisecs), and this is four times that.
const beatLag = 2 * time.Minute

// heartbeat is a small file that is written and never synced: in the boot it was
// written in the page cache has it, in a later one it is at most beatLag old. A
// store commit for each beat would be the only synced write of an idle host.
type heartbeat struct {
	last beatRecord // as found at open

	mu struct { // guards the file; held over one unsynced pwrite
		sync.Mutex
		f *os.File
	}
}

type beatRecord struct {
	Session string    `json:"session"`
	Until   time.Time `json:"until"` // a ctime later than this is not ours
}

func openHeartbeat(path string) (*heartbeat, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open heartbeat: %w", err)
	}
	h := &heartbeat{}
	h.mu.f = f
	raw := make([]byte, beatSize)
	n, _ := f.ReadAt(raw, 0) // what cannot be read or parsed is no heartbeat
	if json.Unmarshal(bytes.TrimRight(raw[:n], " \x00"), &h.last) != nil {
		h.last = beatRecord{}
	}
	return h, nil
}

func (h *heartbeat) write(r beatRecord) error {
	if h == nil {
		return nil
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line := append(raw, bytes.Repeat([]byte{' '}, max(0, beatSize-len(raw)))...)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.f == nil {
		return ErrClosed
	}
	_, err = h.mu.f.WriteAt(line, 0)
	return err
}

func (h *heartbeat) close() error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.mu.f
	h.mu.f = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// Heartbeat says that this run may change images until two heartbeat intervals
// after now. The owner calls it every Options.Heartbeat; a later ctime found by
// the next run in the same boot is a change behind our back. Costs one unsynced
// write of 256 bytes.
func (j *Journal) Heartbeat(now time.Time) error {
	if err := j.beat.write(beatRecord{Session: j.session.ID, Until: now.Add(2 * j.opts.Heartbeat).UTC()}); err != nil {
		return fmt.Errorf("write heartbeat: %w", err)
	}
	return nil
}

// behindOurBack compares an image with what is known of it and returns the
// reason for distrust, "" for none (R5, R6). facts is nil unless the disk was
// stopped cleanly.
func (j *Journal) behindOurBack(rec diskRecord, facts *Facts, now Facts, id Identity) string {
	// Device numbers are not stable across boots, so they do not count here.
	if rec.Identity.Ino != id.Ino || rec.Identity.Gen != id.Gen {
		return "the image file was replaced"
	}
	if rec.Session == j.session.ID {
		return "the image was taken out of tracking in this run, and its records were left over"
	}
	if facts != nil {
		return factsDiffer(*facts, now)
	}
	boot := j.opts.Boot()
	if rec.Boot != boot.ID && now.Ctime.After(boot.Start) {
		return "the image was changed after this boot and before the appliance started"
	}
	if j.beat == nil {
		return ""
	}
	until := rec.Attached.Add(2 * j.opts.Heartbeat)
	if j.beat.last.Session == rec.Session && j.beat.last.Until.After(until) {
		until = j.beat.last.Until
	}
	if rec.Boot != boot.ID { // perhaps not the boot after the crash: in one between them the appliance may not have run
		until = until.Add(beatLag)
	}
	if now.Ctime.After(until) {
		return "the image was changed after the appliance's last heartbeat"
	}
	return ""
}

func factsDiffer(was, is Facts) string {
	switch {
	case was.Size != is.Size:
		return fmt.Sprintf("the image's size changed from %d to %d while the appliance was stopped", was.Size, is.Size)
	case !was.Mtime.Equal(is.Mtime):
		return "the image's modification time changed while the appliance was stopped"
	case !was.Ctime.Equal(is.Ctime):
		return "the image's change time changed while the appliance was stopped"
	case was.Ino != is.Ino:
		return "the image file was replaced while the appliance was stopped"
	}
	return ""
}

// hostBoot reads the running kernel's boot id and time. What cannot be read is
// zero, and a zero time distrusts every image, which is safe.
func hostBoot() Boot {
	var b Boot
	if raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		b.ID = strings.TrimSpace(string(raw))
	}
	f, err := os.Open("/proc/stat")
	if err != nil {
		return b
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if s, ok := strings.CutPrefix(lines.Text(), "btime "); ok {
			if sec, err := strconv.ParseInt(s, 10, 64); err == nil {
				b.Start = time.Unix(sec, 0)
			}
		}
	}
	return b
}
