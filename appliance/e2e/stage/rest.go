package stage

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// atRest makes a point while nothing writes: export, mount and store must be equal, byte for byte, and verify must agree.
func (g *guest) atRest(ctx context.Context) error {
	point, err := g.sync(ctx)
	if err != nil {
		return err
	}
	source, err := g.readSource()
	if err != nil {
		return err
	}
	for _, side := range []struct {
		name string
		path func(disk) (string, error)
	}{
		{"the export", func(d disk) (string, error) { return rig.Exported(g.scratch, d.name), nil }},
		{"the mount", func(d disk) (string, error) { return filepath.Join(g.rig.Mount, g.vm, d.name), nil }},
	} {
		images, err := g.readImages(side.path)
		if err != nil {
			return err
		}
		for i := range images {
			if n := images[i].Differences(source[i]); n != 0 {
				return fmt.Errorf("point %s, disk %s: %s differs from the store in %d blocks", point.ID, g.disks[i].name, side.name, n)
			}
		}
	}
	return g.rig.Verify(ctx, g.vm, point.ID)
}
