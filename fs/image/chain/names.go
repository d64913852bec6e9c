package chain

import (
	"net/url"
	"path"
	"path/filepath"
	"strings"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

const (
	pathMost = 4096 // bytes of a path that are believed
	tailMost = 32   // of its elements
)

// place is where in the store a parent may be, and which locator says so.
type place struct {
	name string
	by   image.Locator
}

// places are the names under which the parent of child is looked for: first those relative to it, then the base name beside
// it, then the tails of paths of other machines from the root of the store. None leads out of the store.
func places(child string, locators []image.Locator) []place {
	var all []place
	seen := map[string]bool{}
	add := func(l image.Locator, name string) {
		if name != "." && filepath.IsLocal(name) && !seen[name] {
			seen[name] = true
			all = append(all, place{name, l})
		}
	}
	dir := path.Dir(child)
	for _, l := range locators {
		if parts, relative := elements(l); relative && len(parts) > 0 {
			add(l, path.Join(dir, path.Join(parts...)))
		}
	}
	for _, l := range locators {
		if parts, _ := elements(l); len(parts) > 0 {
			add(l, path.Join(dir, parts[len(parts)-1]))
		}
	}
	for _, l := range locators {
		parts, relative := elements(l)
		for n := 1; n <= min(len(parts), tailMost) && !relative; n++ {
			add(l, path.Join(parts[len(parts)-n:]...))
		}
	}
	return all
}

// elements splits the path of a locator, without a drive and what else stands before the first directory. None if it is
// no path.
func elements(l image.Locator) (parts []string, relative bool) {
	p := l.Path
	switch l.Kind {
	case "W2ru", "Wi2r", "relative_path":
		relative = true
	case "W2ku", "Wi2k", "name", "absolute_win32_path", "volume_path":
	case "MacX":
		u, err := url.Parse(p)
		if err != nil || u.Scheme != "file" {
			return nil, false
		}
		p, relative = u.Host+u.Path+u.Opaque, true
	default: // an alias of a Macintosh, or what nobody knows
		return nil, false
	}
	if len(p) > pathMost || strings.ContainsRune(p, 0) {
		return nil, false
	}
	p = strings.ReplaceAll(p, `\`, "/")
	if strings.HasPrefix(p, "/") || len(p) > 1 && p[1] == ':' {
		relative = false
	}
	for _, e := range strings.Split(p, "/") {
		if e != "" && e != "." && e != "?" && !strings.HasSuffix(e, ":") {
			parts = append(parts, e)
		}
	}
	if n := len(parts); n > 0 && parts[n-1] == ".." {
		return nil, false
	}
	return parts, relative
}

// inOtherLetters looks for a name whose letters are written otherwise, as Windows takes them: element by element.
func inOtherLetters(s Store, name string) (string, bool) {
	found := "."
	for _, e := range strings.Split(name, "/") {
		names, err := s.Names(found)
		if err != nil {
			return "", false
		}
		best := ""
		for _, n := range names {
			if n == e || best != e && strings.EqualFold(n, e) && (best == "" || n < best) {
				best = n
			}
		}
		if best == "" {
			return "", false
		}
		found = path.Join(found, best)
	}
	return found, found != name
}
