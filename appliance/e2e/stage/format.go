package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// formatDisks have sizes that are no whole MiB, and one that is.
var formatDisks = []disk{
	{name: "os.vhd", size: 33<<20 + 512<<10},
	{name: "odd.raw", size: 20<<20 + 4096},
	{name: "even.raw", size: 16 << 20},
}

// Format downloads replicas as they are at the target, without the appliance, and shows them to others.
func Format(ctx context.Context, e *Env, r *Report) (err error) {
	g, target, end, err := setup(ctx, e, r, "format", formatDisks, rig.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	g.start(ctx)
	if err := g.replicated(ctx); err != nil {
		return err
	}
	if err := g.pause(ctx, e.scale(time.Minute)); err != nil {
		return err
	}
	if err := g.stop(); err != nil {
		return err
	}
	if err := g.atRest(ctx); err != nil {
		return err
	}
	err = g.await(ctx, 2*time.Minute, "the replica to hold the newest point", func(vm rig.VM) bool {
		return vm.LastPoint != nil && vm.AppliedEpoch >= vm.LastPoint.Epoch
	})
	if err != nil {
		return err
	}
	for i, d := range g.disks {
		r.Check(g.replica(ctx, target, i, d), "replica of %s", d.name)
	}
	return nil
}

const footer = 512

// replica downloads the replica of a disk and judges size, content and what other programs make of it.
func (g *guest) replica(ctx context.Context, target *rig.Target, number int, d disk) error {
	path := filepath.Join(g.rig.Dir, "replica-"+d.name+".vhd")
	if err := target.Download(ctx, filepath.Join(g.vm, d.name, "replica.vhd"), path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if (info.Size()-footer)%(1<<20) != 0 {
		return fmt.Errorf("%d bytes, not whole MiB and %d", info.Size(), footer)
	}
	replica, err := readImage(path, d.size, number)
	if err != nil {
		return err
	}
	source, err := readImage(filepath.Join(g.rig.Source, g.vm, d.name), d.size, number)
	if err != nil {
		return err
	}
	if n := replica.Differences(source); n != 0 {
		return fmt.Errorf("differs from the store in %d blocks", n)
	}
	qemu, err := output(ctx, "qemu-img", "info", "-f", "vpc", path)
	if err != nil {
		return err
	}
	other, err := output(ctx, "vhdiinfo", path)
	if err != nil {
		return err
	}
	g.report.Figure(d.name, "%d bytes, %s, %s", info.Size(), lineOf(qemu, "virtual size"), lineOf(other, "Media size"))
	for text, tool := range map[string]string{qemu: "qemu-img", other: "vhdiinfo"} {
		if want := fmt.Sprintf("%d bytes", info.Size()-footer); !strings.Contains(text, want) {
			return fmt.Errorf("%s does not say %q:\n%s", tool, want, text)
		}
	}
	return nil
}

func lineOf(text, field string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, field) {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	return field + ": not said"
}
