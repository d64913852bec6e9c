package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// refusals are how often the earlier release is started on what the later one left.
const refusals = 5

// upgrade lets a later release, whose formats are newer, follow the one that serves, puts the earlier one back, which must refuse
// and say what to do, and then the later one again. The guests wait meanwhile, and see no error.
func (h *heir) upgrade(ctx context.Context) error {
	earlier := h.rig.Binary
	took, err := h.follow(ctx, h.next)
	if err != nil {
		return err
	}
	h.env.say("the later release answers after %v", took.Round(time.Millisecond))
	h.judge(ctx, "the upgrade")
	began := time.Now()
	if err := h.goBack(ctx, earlier); err != nil {
		return fmt.Errorf("back to the earlier release: %w", err)
	}
	if _, err := h.follow(ctx, h.next); err != nil {
		return err
	}
	h.env.say("the earlier release was refused %d times; guests waited %v", refusals, time.Since(began).Round(time.Millisecond))
	h.report.Figure("upgrade", "the later release answers after %v; %d starts of the earlier one refused", took.Round(time.Millisecond), refusals)
	h.judge(ctx, "the way back")
	return h.pause(ctx, 0)
}

// follow installs a release and ends the process that serves, or the earlier one that is refused, until the new one answers.
func (h *heir) follow(ctx context.Context, binary string) (time.Duration, error) {
	pid, began := h.rig.Pid(), time.Now()
	if err := h.rig.Install(binary); err != nil {
		return 0, err
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return 0, err
	}
	if err := h.takenOver(ctx, pid, began); err != nil {
		return 0, err
	}
	if !h.rig.Serves() {
		return 0, errors.New("another program than the installed one answers")
	}
	return time.Since(began), nil
}

// goBack starts the earlier release until it has been refused often enough.
func (h *heir) goBack(ctx context.Context, earlier string) error {
	logged, err := os.ReadFile(h.rig.LogFile())
	if err != nil {
		return err
	}
	if err := h.rig.Install(earlier); err != nil {
		return err
	}
	before, err := h.rig.Exits()
	if err != nil {
		return err
	}
	if err := h.rig.Signal(unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var codes []int
	err = h.rig.Await(ctx, "refusals", func() (bool, error) {
		all, err := h.rig.Exits()
		codes = all[len(before):]
		return len(codes) > refusals, err
	})
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(codes[1:], func(c int) bool { return c != int(control.ExitRefused) }); i >= 0 { // the first is the later one's
		h.report.Fail("the earlier release ends with %d, want %d", codes[1+i], control.ExitRefused)
	}
	said, err := os.ReadFile(h.rig.LogFile())
	if err != nil {
		return err
	}
	for _, want := range []string{"newer vhdrelay", "install the newer vhdrelay again"} {
		if !bytes.Contains(said[len(logged):], []byte(want)) {
			h.report.Fail("the earlier release does not say %q", want)
		}
	}
	return h.pause(ctx, 0)
}
