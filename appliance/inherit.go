package appliance

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/systemd"
)

// keptConfig is the name under which the config that is in force is kept, beside the mounts that are served with it. Never
// change it: an older or newer build looks for it.
const keptConfig = "config"

// ServeFile is Serve with the config at path. A restart with a file that does not read takes the disks from nobody: where
// guests wait on mounts that the process before this one left, they are served with the config that was in force there, as
// after a reload that failed. If nobody kept that one, or this build does not take it, the error is no config.ErrInvalid: a
// manager that does not try again lets go of the mounts.
func ServeFile(ctx context.Context, path string, opts Options) error {
	opts.stored = systemd.Stored()
	conf, err := config.Load(path)
	if err != nil && waiting(opts.stored) {
		if opts.Log == nil {
			opts.Log = slog.Default()
		}
		opts.wrong = err
		conf, err = inForce(opts.stored, path, err)
		if err == nil {
			opts.Log.Error("config does not read; the one of before stays in force, and the guests go on", "path", path, "code", health.ConfigInvalid, "cause", opts.wrong,
				"action", "mend it, then: systemctl restart vhdrelay")
		}
	}
	if err != nil {
		return err
	}
	return Serve(ctx, conf, opts)
}

// waiting says whether the process before this one left a mount.
func waiting(stored map[string]*os.File) bool {
	for name := range stored {
		if filepath.Ext(name) == keptDevice {
			return true
		}
	}
	return false
}

// inForce is the config that the process before this one served with. wrong is what is the matter with the file at path.
func inForce(stored map[string]*os.File, path string, wrong error) (*config.Config, error) {
	conf, err := keptIn(stored[keptConfig])
	if err != nil {
		return nil, &control.Error{Code: health.ConfigInvalid, Exit: control.ExitFailed, Action: "mend it: it is read again at every try",
			Message: fmt.Sprintf("guests wait for their disks, and the config does not read:\n%v\nnor is there the one of before: %v", wrong, err)}
	}
	conf.Path = path
	return conf, nil
}

func keptIn(f *os.File) (*config.Config, error) {
	if f == nil {
		return nil, fmt.Errorf("the process before this one kept none: %w", os.ErrNotExist)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, st.Size()))
	if err != nil {
		return nil, err
	}
	return config.Parse("kept config", text)
}

// keepConfig has the manager keep the config that is in force, as long as it keeps mounts.
func (a *Appliance) keepConfig() {
	if !a.anyKept() {
		return
	}
	if err := a.giveConfig(); err != nil {
		a.log.Warn("the service manager does not keep the config; a restart with a file that does not read makes guests wait", "code", "config-not-kept", "cause", err,
			"action", "none; vhdrelay check-config before a restart")
	}
}

func (a *Appliance) giveConfig() error {
	text, err := a.config().Marshal()
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("vhdrelay-config", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), keptConfig)
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := a.notify.Unstore(keptConfig); err != nil {
		return err
	}
	return a.notify.Store(keptConfig, f)
}

// misread notes that the config file does not read, or with nil that it does again.
func (a *Appliance) misread(err error) {
	if err == nil {
		a.wrong.Store(nil)
		return
	}
	r := warning(health.ConfigInvalid, "mend it (vhdrelay check-config), then: systemctl reload vhdrelay", "the config file does not read, what was in force before goes on: %v", err)
	a.wrong.Store(&r)
}

// configReasons are what status says of the config.
func (a *Appliance) configReasons() []control.Reason {
	if r := a.wrong.Load(); r != nil {
		return []control.Reason{*r}
	}
	return nil
}
