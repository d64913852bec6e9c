package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// Export writes the one disk of the session to a file: see Disk.Export.
func (s *Session) Export(path string, opts ExportOptions) error {
	if len(s.plans) != 1 {
		return fmt.Errorf("%w: one file for %d disks", ErrNoDisk, len(s.plans))
	}
	d, err := s.Open(s.plans[0])
	if err != nil {
		return s.cause(err)
	}
	return s.cause(d.Export(s.ctx, path, opts))
}

// ExportAll writes all disks of the session into a directory, which it makes,
// under their own names with the extension of the format. No output has its
// final name before every disk is whole and proven: the directory never holds
// disks of two points. It resumes like Disk.Export.
func (s *Session) ExportAll(dir string, opts ExportOptions) error {
	opts, err := opts.withDefaults()
	if err != nil {
		return err
	}
	files, err := s.Files(dir, opts.Format)
	if err != nil {
		return err
	}
	var exports []*export
	defer func() {
		for _, e := range exports {
			e.close()
		}
	}()
	for i, step := range s.steps(opts.Progress) {
		opts.Progress = step.progress
		named := i > 0 && exports[0].file == nil
		e, err := s.fill(step.plan, files[i], opts, named)
		if e != nil {
			exports = append(exports, e)
		}
		if err != nil {
			return fmt.Errorf("export %s: %w", step.plan.Disk.Name, s.cause(err))
		}
	}
	for _, e := range exports {
		if err := e.name(); err != nil {
			return err
		}
	}
	for _, e := range slices.Backward(exports) { // only now, the first one last: it says that the names are ours
		if err := e.forget(); err != nil {
			return err
		}
	}
	return nil
}

// Files are the paths that ExportAll gives its outputs, in the order of Plans.
func (s *Session) Files(dir, format string) ([]string, error) {
	names, err := outputNames(s.plans, format)
	for i, name := range names {
		names[i] = filepath.Join(dir, name)
	}
	return names, err
}

func (s *Session) fill(p Plan, path string, opts ExportOptions, named bool) (*export, error) {
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return nil, err
	}
	d, err := s.Open(p)
	if err != nil {
		return nil, err
	}
	e, err := d.newExport(path, opts, named)
	if err != nil {
		return nil, err
	}
	return e, e.fill(s.ctx)
}

// makeDirs makes a directory and its parents, durably.
func makeDirs(dir string) error {
	if found, err := exists(dir); found || err != nil {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	return durable.OS{}.SyncDir(parent)
}

// outputNames are paths relative to the directory. An extension that already
// says the format stays; another is replaced, or, where two disks would then
// share a name, kept in front of the new one. A name that leads out of the
// directory is refused: the record is not ours to trust.
func outputNames(plans []Plan, format string) ([]string, error) {
	taken := map[string]int{}
	short := make([]string, len(plans))
	for i, p := range plans {
		if !filepath.IsLocal(p.Disk.Name) {
			return nil, fmt.Errorf("%w: name %q leads out of the directory", ErrNoDisk, p.Disk.Name)
		}
		short[i] = withExtension(p.Disk.Name, format)
		taken[short[i]]++
	}
	names := make([]string, len(plans))
	used := map[string]bool{}
	for i, p := range plans {
		names[i] = short[i]
		if taken[short[i]] > 1 && short[i] != p.Disk.Name {
			names[i] = p.Disk.Name + "." + format
		}
		if used[names[i]] {
			return nil, fmt.Errorf("%w: two disks would be %q; export them one by one", ErrExists, names[i])
		}
		used[names[i]] = true
	}
	return names, nil
}

func withExtension(name, format string) string {
	ext := filepath.Ext(name)
	switch lower := strings.ToLower(ext); {
	case lower == "."+format, format == FormatRaw && lower == ".img":
		return name
	}
	return strings.TrimSuffix(name, ext) + "." + format
}
