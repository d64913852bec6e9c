package cli

import (
	"testing"
)

func TestUnmountCommand(t *testing.T) {
	r := newRig(t)
	r.serve(t, fleet()...)
	golden(t, "unmount", r.session("unmount main", "unmount main --force", "unmount --force --json", "unmount nobody", "unmount main --force --release", "unmount gone --force", "unmount a b"))
}

// Without an appliance the command does itself what is left to do.
func TestUnmountWithoutAppliance(t *testing.T) {
	r := newRig(t)
	golden(t, "unmount-alone", r.session("unmount", "unmount main --release", "unmount --json"))
}
