package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

// test is one run: a guest, a target, and what was found.
type test struct {
	*guest.Machine
	dir     string
	image   guest.Image
	payload string
	azure   *azurite.Server
	results map[string]error
}

const (
	storeSize = 1 << 30
	diskSize  = 32 << 20
	container = "replicas"
)

// prepare makes what the machines need.
func (t *test) prepare(ctx context.Context, cache, kernel string) (err error) {
	switch kernel {
	case "stock":
		t.image, err = guest.Cached(ctx, cache, os.Stdout)
	case "backports":
		t.image, err = guest.CachedBackports(ctx, cache, os.Stdout)
	default:
		err = fmt.Errorf("kernel %q: stock or backports", kernel)
	}
	if err != nil {
		return err
	}
	module, err := guest.Module()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return err
	}
	next, err := rig.BuildNext(ctx, t.dir)
	if err != nil {
		return err
	}
	t.payload = filepath.Join(t.dir, "payload.img")
	return guest.Payload(ctx, module, t.dir, t.payload, next)
}

// all runs the steps in one machine and the ends in another, and counts the failures.
func (t *test) all(ctx context.Context, o options) (failed int, err error) {
	if o.restarts > 0 && !t.check(fmt.Sprintf("%d restarts and %d kills under load, on the %s kernel", o.restarts, o.kills, o.kernel), t.ends(ctx, o)) {
		failed++
	}
	if !o.steps {
		return failed, nil
	}
	if err := t.boot(ctx); err != nil {
		return failed, err
	}
	failed += t.play(ctx)
	return failed, t.close()
}

// ends runs stage.Service; its evidence stays where it works.
func (t *test) ends(ctx context.Context, o options) error {
	e := &stage.Env{Dir: t.dir, Binary: filepath.Join(t.dir, "payload", "tree", "usr", "local", "bin", "vhdrelay"), Seed: o.seed, Out: os.Stdout, Azure: true}
	report := stage.NewReport(e.Out)
	service := stage.Service{Image: t.image, Payload: t.payload, Hot: o.kernel == "backports", Restarts: o.restarts, Kills: o.kills, Next: "/payload/vhdrelay-next"}
	err := service.Run(ctx, e, report)
	for _, f := range report.Figures() {
		fmt.Printf("     %s: %s\n", f.Name, f.Value)
	}
	for _, f := range report.Failures() {
		err = errors.Join(err, errors.New(f))
	}
	return err
}

// boot makes target and machine, and boots.
func (t *test) boot(ctx context.Context) (err error) {
	store := filepath.Join(t.dir, "store.img")
	if err := t.makeStore(ctx, store); err != nil {
		return err
	}
	if t.azure, err = azurite.Start(ctx, azurite.Options{}); err != nil {
		return err
	}
	if t.Machine, err = guest.New(ctx, guest.Options{Dir: filepath.Join(t.dir, "machine"), Image: t.image, Payload: t.payload, Store: store}); err != nil {
		return errors.Join(err, t.azure.Close())
	}
	began := time.Now()
	if err := t.Boot(ctx); err != nil {
		return errors.Join(err, t.azure.Close())
	}
	fmt.Printf("booted in %v\n", time.Since(began).Round(time.Second))
	return nil
}

// makeStore makes a file system with a VM of one disk.
func (t *test) makeStore(ctx context.Context, path string) error {
	tree := filepath.Join(t.dir, "store")
	disk := filepath.Join(tree, "vhd", "web01", "os.raw")
	if err := os.MkdirAll(filepath.Dir(disk), 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(disk, nil, 0o644), os.Truncate(disk, diskSize)); err != nil {
		return err
	}
	return guest.Ext4(ctx, path, "store", tree, storeSize)
}

func (t *test) close() error { return errors.Join(t.Close(), t.azure.Close()) }

// port is the one that Azurite has here and the guest's loopback has too.
func (t *test) port() int {
	u, err := url.Parse(t.azure.Endpoint())
	if err != nil {
		return 0
	}
	port, _ := strconv.Atoi(u.Port()) // an endpoint of our own making has one
	return port
}

func (t *test) url() string { return t.azure.Endpoint() + "/" + container }

// config is the guest's configuration: the installed one, with what an administrator changes.
func (t *test) config(interval string) string {
	return fmt.Sprintf(`stores:
  - {name: main, source: /srv/vhd, mount: /vhd}
target:
  url: %s
  credentials: {type: shared_key, file: /run/credentials/vhdrelay.service/target}
replication: {interval: %s, apply_interval: 20s}
`, t.url(), interval)
}

// check notes what a step found.
func (t *test) check(name string, err error) bool {
	t.results[name] = err
	verdict := "ok  "
	if err != nil {
		verdict = "FAIL"
	}
	fmt.Printf("%s %s %s\n", time.Now().UTC().Format(time.TimeOnly), verdict, name)
	if err != nil {
		fmt.Println("     " + strings.ReplaceAll(err.Error(), "\n", "\n     "))
	}
	return err == nil
}

// play runs the steps and counts the failures. Later steps are tried after a failure: they say more.
func (t *test) play(ctx context.Context) (failed int) {
	for _, s := range steps {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		err := s.run(t, ctx)
		cancel()
		if !t.check(s.name, err) {
			failed++
			t.evidence(s.name)
		}
	}
	return failed
}

// stepTimeout is for one step, of an emulated machine.
const stepTimeout = 10 * time.Minute

// evidence keeps the guest's journal as it is after a failure.
func (t *test) evidence(step string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text, err := t.Run(ctx, "journalctl", "-b", "--no-pager", "-o", "short-monotonic")
	if err != nil {
		text += err.Error()
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, step)
	if err := os.WriteFile(filepath.Join(t.dir, "journal-"+name+".log"), []byte(text), 0o600); err != nil {
		fmt.Println("     no evidence kept:", err)
	}
}
