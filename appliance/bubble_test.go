package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// bubble is an appliance in virtual time: everything but the mount, over the fake
// target and the journal's store in memory. Files are real.
type bubble struct {
	t       testing.TB
	a       *Appliance
	store   *store
	journal *memory.Store
	failing atomic.Bool                   // the journal takes nothing
	hangs   atomic.Pointer[chan struct{}] // the journal answers when it is closed
	target  *fake.Fake
	source  string
	cancel  context.CancelFunc
	group   *errgroup.Group
	rand    *rand.Rand
	log     *logged
}

// logged keeps what is logged.
type logged struct {
	mu struct {
		sync.Mutex // never held over I/O
		all        []slog.Record
	}
}

func (r *logged) Enabled(context.Context, slog.Level) bool { return true }
func (r *logged) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *logged) WithGroup(string) slog.Handler            { return r }

func (r *logged) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.all = append(r.mu.all, rec.Clone())
	return nil
}

// of are the records with a message that name a stage.
func (r *logged) of(message, stage string) (found []slog.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.mu.all {
		rec.Attrs(func(a slog.Attr) bool {
			if rec.Message == message && a.Key == "stage" && a.Value.String() == stage {
				found = append(found, rec)
			}
			return true
		})
	}
	return found
}

// lines are the messages at info and above, with their cause.
func (r *logged) lines() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.mu.all {
		if rec.Level >= slog.LevelInfo {
			text := rec.Message
			rec.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
			all = append(all, text)
		}
	}
	return all
}

// forget drops what was logged so far.
func (r *logged) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.all = nil
}

// warmUp uses the codecs once outside of any bubble: what they keep for good must
// not belong to one.
var warmUp = sync.OnceValue(func() error {
	var buf bytes.Buffer
	w, err := segment.NewWriter(&buf, segment.Header{VM: "vm", Disk: "d", Generation: 1, Epoch: 1, VirtualSize: mib}, segment.Fastest)
	if err != nil {
		return err
	}
	page := append([]byte{1}, make([]byte, 65535)...)
	if err := w.Data(0, page, checksum.Blocks(nil, page)); err != nil {
		return err
	}
	info, err := w.Close()
	if err != nil {
		return err
	}
	r, err := segment.Open(bytes.NewReader(buf.Bytes()), info.Size)
	if err == nil {
		_, err = r.Frame(0)
	}
	return err
})

// inBubble runs a test with an appliance in virtual time; extra are lines of its config.
func inBubble(t *testing.T, extra string, images map[string][]byte, f func(b *bubble)) {
	t.Helper()
	if err := warmUp(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, extra, images)
		defer b.end()
		f(b)
	})
}

func newBubble(t testing.TB, extra string, images map[string][]byte) *bubble {
	dir := inMemory(t)
	b := &bubble{t: t, source: filepath.Join(dir, "source"), target: fake.New(fake.Options{}), journal: &memory.Store{}, rand: rand.New(rand.NewPCG(3, 4)), log: &logged{}}
	b.journal.Before = func(int, *kv.Batch) memory.Fault {
		if c := b.hangs.Load(); c != nil {
			<-*c
		}
		if b.failing.Load() {
			return memory.Lost
		}
		return memory.None
	}
	for _, d := range []string{b.source, filepath.Join(dir, "state", "tables")} {
		b.must(os.MkdirAll(d, 0o700))
	}
	for name, content := range images {
		b.put(name, content)
	}
	path := filepath.Join(dir, "c.yaml")
	b.must(os.WriteFile(path, fmt.Appendf(nil, "state_dir: %s/state\ncontrol_socket: %s/s\nmetrics_listen: \"\"\nstores: [{name: main, source: %s, mount: %s/mount}]\n"+
		"target: {url: \"dir://%s/unused\"}\n%s", dir, dir, b.source, dir, dir, extra), 0o600))
	conf, err := config.Load(path)
	b.must(err)
	b.a = compose(conf, Options{Log: slog.New(b.log)})
	b.must(b.a.identify())
	b.a.opened.target = b.target
	b.a.journal, err = journal.Open(b.journal, journal.Options{Log: b.a.log, Saved: filepath.Join(dir, "saved"), Now: b.a.now})
	b.must(err)
	b.a.jobs, err = openJobs(b.a.journal, b.a.now, b.a.log)
	b.must(err)
	b.store = newStore(b.a, conf.Stores[0])
	b.a.stores = append(b.a.stores, b.store)
	b.must(b.store.claim())
	b.must(b.a.attachAll())
	b.store.watcher.stop() // it waits for the kernel, and virtual time would wait with it
	b.store.watcher = watcher{}
	b.a.redo()
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(t.Context())
	b.group, ctx = errgroup.WithContext(ctx)
	b.a.startMachines(ctx, b.group)
	b.a.resumeLeaving()
	return b
}

// inMemory is a directory in memory where there is one: hours of virtual time are
// thousands of fsyncs, and what is tested is not the disk.
func inMemory(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "bubble")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (b *bubble) end() {
	b.t.Helper()
	b.cancel()
	if err := b.group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		b.t.Error(err)
	}
	for _, m := range b.a.machines() {
		if s := m.log.Sealed(); s != nil {
			b.must(s.MergeBack())
		}
	}
	b.must(errors.Join(b.a.closeMachines(), b.a.journal.Close(context.Background()), b.store.close()))
}

func (b *bubble) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// put makes a file of the source, as if it had always been there; zeros are a hole.
func (b *bubble) put(name string, content []byte) {
	b.t.Helper()
	path := filepath.Join(b.source, name)
	b.must(os.MkdirAll(filepath.Dir(path), 0o755))
	b.must(os.WriteFile(path, nil, 0o644))
	if checksum.IsZero(content) {
		b.must(os.Truncate(path, int64(len(content))))
		return
	}
	b.must(os.WriteFile(path, content, 0o644))
}

// attach is what fs does when an image is seen for the first time.
func (b *bubble) attach(name string) {
	b.t.Helper()
	id, err := fs.Identify(filepath.Join(b.source, name))
	b.must(err)
	b.store.Attach(name, id)
}

// write is a guest's write of n random bytes to an attached image.
func (b *bubble) write(name string, off int64, n int) {
	b.t.Helper()
	id, err := fs.Identify(filepath.Join(b.source, name))
	b.must(err)
	b.store.mu.Lock()
	a := b.store.mu.images[fileID{id.Dev, id.Ino}]
	b.store.mu.Unlock()
	if a == nil {
		b.t.Fatalf("%s is not tracked", name)
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(b.rand.Uint32())
	}
	c := extent.Change{Kind: extent.Write, Off: off, Len: int64(n)}
	pass, err := a.disk.Begin(c)
	b.must(err)
	_, err = a.file.WriteAt(p, off)
	a.disk.End(c, pass, err)
	b.must(err)
}

// pass lets time go by while the guest writes a block of the image every ten seconds.
func (b *bubble) pass(name string, d time.Duration) {
	b.t.Helper()
	for range d / (10 * time.Second) {
		b.write(name, b.rand.Int64N(128)*4096, 4096)
		retry.Sleep(b.t.Context(), 10*time.Second)
	}
}

func (b *bubble) vm(name string) control.VM {
	b.t.Helper()
	synctest.Wait()
	s, err := b.a.Status(b.t.Context(), name)
	b.must(err)
	return s.VMs[0]
}

// within waits until the VM is as wanted, and fails after so much virtual time.
func (b *bubble) within(d time.Duration, name, what string, holds func(control.VM) bool) control.VM {
	b.t.Helper()
	for end := time.Now().Add(d); ; {
		v := b.vm(name)
		if holds(v) {
			return v
		}
		if time.Now().After(end) {
			b.t.Fatalf("%s of %s: not within %v, it is %s, %s, %+v", what, name, d, v.State, v.Health, v.Reasons)
		}
		retry.Sleep(b.t.Context(), time.Second)
	}
}

func normal(v control.VM) bool { return v.Health == control.HealthNormal }

func replicating(v control.VM) bool {
	return normal(v) && v.State == "Replicating" && v.LastPoint != nil
}

// down makes every operation of the target fail so.
func (b *bubble) down(err error) {
	b.target.SetHook(func(fake.Op) fake.Fault { return fake.Fault{Kind: fake.Refuse, Err: err} })
}

func (b *bubble) up() { b.target.SetHook(nil) }
