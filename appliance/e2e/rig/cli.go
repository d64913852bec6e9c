package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Exit codes of the command line that callers tell apart (DESIGN §7).
const (
	ExitNotReachable = 4
	ExitRefused      = 6
	ExitDifferences  = 7
)

// CommandError is a command that did not exit with 0.
type CommandError struct {
	Args   []string
	Code   int // -1 if it was killed
	Output string
}

// Error has all that the command printed.
func (e *CommandError) Error() string {
	return fmt.Sprintf("vhdrelay %s: exit %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Output))
}

// Run runs a command and returns its standard output. A failure is a *CommandError.
func (r *Rig) Run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.Binary, append(args, "--config", r.config())...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &diag, r.environ()
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = &CommandError{Args: args, Code: exit.ExitCode(), Output: out.String() + diag.String()}
	}
	return out.Bytes(), err
}

func (r *Rig) json(ctx context.Context, v any, args ...string) error {
	out, err := r.Run(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("%v prints no JSON: %w: %s", args, err, out)
	}
	return nil
}

// Status asks the appliance.
func (r *Rig) Status(ctx context.Context) (Status, error) {
	var s Status
	err := r.json(ctx, &s, "status")
	return s, err
}

// VM asks for one VM.
func (r *Rig) VM(ctx context.Context, name string) (VM, error) {
	s, err := r.Status(ctx)
	if err != nil {
		return VM{}, err
	}
	vm, ok := s.VM(name)
	if !ok {
		return VM{}, fmt.Errorf("status does not know VM %s", name)
	}
	return vm, nil
}

// Sync seals and waits for the point.
func (r *Rig) Sync(ctx context.Context, vm string) (SyncResult, error) {
	var s SyncResult
	err := r.json(ctx, &s, "sync", vm, "--wait")
	if err == nil && s.Point == "" {
		err = fmt.Errorf("sync %s --wait: epoch %d became no point, and nobody says why", vm, s.Epoch)
	}
	return s, err
}

// Points lists the points of a VM, oldest first. args are more of the command, as where to look.
func (r *Rig) Points(ctx context.Context, vm string, args ...string) ([]Point, error) {
	var list struct {
		Points []Point `json:"points"`
	}
	err := r.json(ctx, &list, append([]string{"points", vm}, args...)...)
	return list.Points, err
}

// Export writes the disks of a point as raw files into dir, which is emptied first, straight from the target.
func (r *Rig) Export(ctx context.Context, vm, point, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	_, err := r.Run(ctx, "export", vm, "--point", point, "--output", dir, "--format", "raw", "--target", r.URL)
	return err
}

// Exported is the path of an exported raw file of a disk below dir.
func Exported(dir, disk string) string {
	return filepath.Join(dir, strings.TrimSuffix(disk, filepath.Ext(disk))+".raw")
}

// Verify proves a point against its record.
func (r *Rig) Verify(ctx context.Context, vm, point string) error {
	_, err := r.Run(ctx, "verify", vm, "--point", point, "--target", r.URL)
	return err
}
