package appliance

import (
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
)

// lineage is what a differencing image was last seen to lie over.
type lineage struct {
	names  []string
	stats  []chain.Stat
	broken string // why it ends early
}

// lookAtChains finds what the differencing images of the store lie over. It reads their headers and block tables only where
// something has changed, and holds no lock meanwhile.
func (s *store) lookAtChains() error {
	dir, err := chain.OpenDir(s.conf.Source)
	if err != nil {
		return err
	}
	defer dir.Close()
	paths, was := s.imagePaths()
	now := map[string]lineage{}
	for _, path := range paths {
		if l := was[path]; l.broken == "" && l.names != nil && l.unchanged(dir) {
			now[path] = l
		} else if differencing(dir, path) {
			now[path] = lineageOf(dir, path)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.chains = now
	return nil
}

// imagePaths are where the images lie, and what was found the last time.
func (s *store) imagePaths() (paths []string, was map[string]lineage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.mu.images {
		paths = append(paths, a.at())
	}
	return paths, s.mu.chains // replaced as a whole, never changed
}

func differencing(dir *chain.Dir, path string) bool {
	f, err := dir.Open(path)
	if err != nil {
		return false // gone, or renamed meanwhile
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false
	}
	info, _ := image.Probe(path, f, st.Size) // refused or not, it says what it is
	return info.Format == image.VHDDifferencing || info.Format == image.VHDXDifferencing
}

func lineageOf(dir *chain.Dir, path string) lineage {
	members, err := chain.Walk(dir, path)
	l := lineage{}
	for _, m := range members {
		l.names, l.stats = append(l.names, m.Name), append(l.stats, m.Stat)
	}
	if err != nil {
		l.broken = err.Error()
	}
	return l
}

// unchanged says whether no file of the chain is another one or was written.
func (l lineage) unchanged(dir *chain.Dir) bool {
	for i, name := range l.names {
		f, err := dir.Open(name)
		if err != nil {
			return false
		}
		st, err := f.Stat()
		f.Close() // it was only looked at
		if err != nil || st != l.stats[i] {
			return false
		}
	}
	return true
}

// showChains completes the disks of a VM.
func (m *machine) showChains(disks []control.Disk) {
	s := m.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.chains) == 0 {
		return
	}
	for _, a := range s.mu.images {
		l, found := s.mu.chains[a.at()]
		if !found || a.vm != m {
			continue
		}
		for i := range disks {
			if disks[i].Name == a.disk.Name() {
				disks[i].Chain, disks[i].ChainError = l.names, l.broken
			}
		}
	}
}

// parents is the source of a store as the pipeline looks into it for what images lie over.
type parents struct{ source string }

// Open implements chain.Store.
func (p parents) Open(name string) (chain.File, error) {
	dir, err := chain.OpenDir(p.source)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Open(name)
}

// Names implements chain.Store.
func (p parents) Names(name string) ([]string, error) {
	dir, err := chain.OpenDir(p.source)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Names(name)
}
