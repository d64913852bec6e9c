package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

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
	t, err := openTarget(ctx, conf, known.URL != conf.URL, a.log)
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
// one where the credentials allow it.
func openTarget(ctx context.Context, c config.Target, create bool, log *slog.Logger) (target.Target, error) {
	if strings.HasPrefix(c.URL, "dir:") {
		path, err := dir.Path(c.URL)
		if err != nil {
			return nil, err
		}
		return dir.Open(path, dir.Options{Create: create})
	}
	t, err := pageblob.Open(ctx, pageblob.Options{
		URL: c.URL, CAFile: c.CAFile, Log: log,
		Credential: pageblob.Credential{Type: pageblob.Kind(c.Credentials.Type), File: c.Credentials.File},
	})
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if create {
		if err := t.EnsureContainer(ctx); err != nil && !errors.Is(err, target.ErrAuth) {
			return nil, err
		}
	}
	return t, nil
}
