package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	vm "github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// inside is a guest that runs the appliance from its unit, with the target and the ledger of its load out here.
type inside struct {
	*guest
	machine *vm.Machine
	store   string // the file of the disk with store and state
}

// plugDisks: the load leaves most of the wide one alone, so that a full scan after a cut is told from a comparison of what
// was active.
var plugDisks = []disk{{name: "os.vhd", size: 48 << 20}, {name: "data.raw", size: 64 << 20}, {name: "wide.raw", size: 256 << 20, span: 8 << 20}}

// storeBytes is the size of the disk with store and state.
const storeBytes = 1 << 30

// newInside makes all that, below a directory of that name. end ends it.
func newInside(ctx context.Context, e *Env, r *Report, name string, image vm.Image, payload string) (x *inside, end func() error, err error) {
	dir, err := e.fresh(name)
	if err != nil {
		return nil, nil, err
	}
	target, err := rig.AzureTarget(ctx, filepath.Join(dir, "azurite"))
	if err != nil {
		return nil, nil, err
	}
	if x, err = insideAt(ctx, e, r, dir, target); err == nil {
		x.machine, err = vm.New(ctx, vm.Options{Dir: filepath.Join(dir, "machine"), Image: image, Payload: payload, Store: x.store})
	}
	if err != nil {
		return nil, nil, errors.Join(err, target.Close())
	}
	return x, func() error {
		err := x.machine.Kill() // first, so that no write hangs
		_ = x.guest.stop()
		return errors.Join(err, x.machine.Close(), target.Close())
	}, nil
}

// insideAt makes the disk with the store.
func insideAt(ctx context.Context, e *Env, r *Report, dir string, target *rig.Target) (*inside, error) {
	tree := filepath.Join(dir, "host") // first a tree, later where a copy of the disk is looked at
	appliance, err := rig.New(rig.Options{Dir: dir, Binary: e.Binary, URL: target.URL, Key: target.Key, Source: filepath.Join(tree, "vhd")})
	if err != nil {
		return nil, err
	}
	g, err := newGuest(ctx, e, r, appliance, plugDisks)
	if err != nil {
		return nil, err
	}
	g.slack = 3 * time.Second // the guest's clock begins at a whole second
	x := &inside{guest: g, store: filepath.Join(dir, "store.img")}
	x.load.Rate, x.load.Writers = 4_000_000, 8 // the processor is emulated, an answer takes its time
	x.load.Open = func(path string, flags int) (stamp.File, error) {
		return x.machine.Open(ctx, "/vhd"+strings.TrimPrefix(path, x.rig.Mount), flags), nil
	}
	return x, errors.Join(vm.Ext4(ctx, x.store, "store", tree, storeBytes), os.RemoveAll(tree))
}

// install boots the machine and starts the appliance in it for the first time.
func (x *inside) install(ctx context.Context) error {
	if err := x.machine.Boot(ctx); err != nil {
		return err
	}
	u, err := url.Parse(x.rig.URL)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return err
	}
	if err := errors.Join(
		x.machine.Install(ctx, port),
		x.machine.Put(ctx, configPath, x.config(""), 0o600),
		x.machine.Put(ctx, "/etc/credstore/vhdrelay.target", x.rig.Key, 0o600),
	); err != nil {
		return err
	}
	if _, err := x.machine.Shell(ctx, "mkdir /vhd && systemctl enable -q --now vhdrelay && sync"); err != nil {
		return err
	}
	return x.replicated(ctx)
}

// configPath is where the machine has its configuration.
const configPath = "/etc/vhdrelay/vhdrelay.yaml"

// config is the machine's configuration, with more lines at its end.
func (x *inside) config(more string) string {
	return fmt.Sprintf("state_dir: /srv/state\nstores:\n  - {name: main, source: /srv/vhd, mount: /vhd}\ntarget:\n  url: %s\n"+
		"  credentials: {type: shared_key, file: /run/credentials/vhdrelay.service/target}\nreplication: {interval: 5s, apply_interval: 20s}\n%s", x.rig.URL, more)
}

// syncInside asks the appliance in the machine for a point and judges it out here.
func (x *inside) syncInside(ctx context.Context) (rig.Point, error) {
	bounds := stamp.Bounds{After: x.log.Tick(), Before: math.MaxInt64}
	out, err := x.machine.Run(ctx, "vhdrelay", "sync", x.vm, "--wait", "--json")
	if err != nil {
		return rig.Point{}, err
	}
	bounds.Before = x.log.Tick()
	var result rig.SyncResult
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return rig.Point{}, fmt.Errorf("sync prints %q: %w", out, err)
	}
	return x.judgeSync(ctx, result, bounds)
}

// readStore reads the images in the disk of a machine that is off.
func (x *inside) readStore(ctx context.Context) ([]stamp.Image, error) {
	look := &rig.Loop{File: x.store, Dir: filepath.Dir(x.rig.Source)}
	if err := look.Mount(ctx); err != nil {
		return nil, err
	}
	images, err := x.readSource()
	return images, errors.Join(err, look.Unmount())
}

// same wants a point to be the store, bit by bit.
func (x *inside) same(point rig.Point, images, source []stamp.Image) error {
	for i := range images {
		if n := images[i].Differences(source[i]); n != 0 {
			return fmt.Errorf("point %s, disk %s differs from the store in %d blocks", point.ID, x.disks[i].name, n)
		}
	}
	return nil
}
