package preflight

import (
	"context"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Options say what to check.
type Options struct {
	Config *config.Config
	// VM is the one to check, "" for all.
	VM string
	// Belongs tells which VM an image is a disk of, by its path relative to the store's source.
	Belongs func(store config.Store, image string) (vm, disk string, ok bool)
	// Open opens the target and makes nothing there.
	Open func(ctx context.Context) (target.Target, error)
	// Served lists the mounts that an appliance serves now; nil without one.
	Served []string
	// Missing is how many bytes of a disk the target lacks, where an appliance knows; nil without one.
	Missing func(vm, disk string) (bytes int64, known bool)
	// User looks up a user of this host; nil: in its user database.
	User func(name string) (id int, known bool)
	// Progress is told what is looked at; nil: nobody.
	Progress func(control.Progress)
	Now      func() time.Time
}

// run is one run over the options.
type run struct {
	Options
	result control.Preflight
	rate   int64  // bytes a second to the target, 0: not measured
	all    []disk // that are looked at
}

// Run does every check. The error is ctx's, or that there is no such VM; what a check finds is in the result.
func Run(ctx context.Context, o Options) (control.Preflight, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Progress == nil {
		o.Progress = func(control.Progress) {}
	}
	if o.User == nil {
		o.User = lookUp
	}
	r := &run{Options: o}
	images, err := r.images()
	if err != nil {
		return r.result, err
	}
	for _, part := range []struct {
		name  string
		check func(context.Context)
	}{
		{"the host", func(context.Context) { r.host() }},
		{"the stores", func(context.Context) { r.stores() }},
		{"the state disk", func(context.Context) { r.state(images) }},
		{"the target", r.target},
		{"the disks", func(context.Context) { r.disks(images) }},
	} {
		r.Progress(control.Progress{Stage: "checking " + part.name})
		part.check(ctx)
		if err := ctx.Err(); err != nil {
			return r.result, err
		}
	}
	r.moves(images)
	return r.result, nil
}

// subject is what checks are about.
type subject struct{ vm, disk string }

func (r *run) add(s subject, code string, result control.CheckResult, action, format string, args ...any) {
	r.result.Checks = append(r.result.Checks, control.Check{
		Code: code, Result: result, VM: s.vm, Disk: s.disk, Message: fmt.Sprintf(format, args...), Action: action,
	})
}

func (r *run) pass(code, format string, args ...any) {
	r.add(subject{}, code, control.CheckPass, "", format, args...)
}

func (r *run) warn(code, action, format string, args ...any) {
	r.add(subject{}, code, control.CheckWarn, action, format, args...)
}

func (r *run) fail(code, action, format string, args ...any) {
	r.add(subject{}, code, control.CheckFail, action, format, args...)
}

// size writes bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
