package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/shipper/dir"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// docTarget is the journal's document that says which target was opened.
const docTarget = "appliance/target"

// knownTarget is the target that this state directory belongs to.
type knownTarget struct {
	URL string `json:"url"`
}

// openTarget opens the target once for all VMs. The first time an empty place is
// made one; later a missing container or directory is an error, for an empty mount
// point must not look like an empty target.
func (a *Appliance) openTarget(ctx context.Context) (target.Target, error) {
	a.opened.Lock()
	defer a.opened.Unlock()
	if a.opened.target != nil {
		return a.opened.target, nil
	}
	conf := a.config().Target
	var known knownTarget
	if _, err := a.journal.Load(docTarget, &known); err != nil {
		return nil, err
	}
	t, err := openTarget(ctx, conf, known.URL != conf.URL, a.log, a.hook)
	if err != nil {
		return nil, err
	}
	if known.URL != conf.URL {
		if err := a.journal.Save(docTarget, knownTarget{conf.URL}); err != nil {
			return nil, err
		}
	}
	a.opened.target = t
	return t, nil
}

// openTarget opens the target that the config names; create makes an empty place
// one where the credentials allow it. hook is for the failpoints of a directory.
func openTarget(ctx context.Context, c config.Target, create bool, log *slog.Logger, hook func(string)) (target.Target, error) {
	if strings.HasPrefix(c.URL, "dir:") {
		path, err := dir.Path(c.URL)
		if err != nil {
			return nil, err
		}
		return dir.Open(path, dir.Options{Create: create, Hook: hook})
	}
	t, err := pageblob.Open(ctx, pageblob.Options{
		URL: c.URL, CAFile: c.CAFile, Log: log,
		Credential: pageblob.Credential{Type: pageblob.Kind(c.Credentials.Type), File: c.Credentials.File},
	})
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if create {
		if err := makeContainer(ctx, t); err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	return t, nil
}

// makeContainer makes the container unless it is there. A credential that may not
// is good enough for one that is; one that is refused altogether is an error, so
// that the next attempt still makes it.
func makeContainer(ctx context.Context, t *pageblob.Target) error {
	err := t.EnsureContainer(ctx)
	if errors.Is(err, target.ErrAuth) {
		return t.Probe(ctx)
	}
	return err
}

// secretInterval is how often the files of target are looked at for a change.
const secretInterval = 2 * time.Second

// watchSecret lets every VM try again when the file of the credential changes: one
// that was refused waits for nothing else.
func (a *Appliance) watchSecret(ctx context.Context) error {
	path := a.config().Target.Credentials.File
	if path == "" {
		return nil
	}
	tick := time.NewTicker(secretInterval)
	defer tick.Stop()
	for last := stampOf(path); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if now := stampOf(path); now != last {
			last = now
			a.wakeMachines()
		}
	}
}

// fileStamp tells one state of a file from another; zero: it is not there.
type fileStamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	s := fileStamp{modified: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}

// wakeMachines makes every stage of every VM try again now.
func (a *Appliance) wakeMachines() {
	for _, m := range a.machines() {
		m.pipeline.Wake()
	}
}
