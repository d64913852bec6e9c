package config

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// check finds what no single value shows.
func (r *reader) check(c *Config) {
	if len(c.Stores) == 0 {
		r.failAt("stores", "no store is configured: give at least one, with name, source and mount")
	}
	for i, s := range c.Stores {
		r.checkStore(fmt.Sprintf("stores[%d]", i), s)
	}
	r.checkDirectories(c)
	r.checkNames(c)
	if len(c.ControlSocket) > MaxSocketPath {
		r.failAt("control_socket", "is %d bytes long, a unix socket's path has at most %d", len(c.ControlSocket), MaxSocketPath)
	}
	if c.MetricsListen != "" {
		if _, port, err := net.SplitHostPort(c.MetricsListen); err != nil || port == "" {
			r.failAt("metrics_listen", "%q is not host:port", c.MetricsListen)
		}
	}
	r.checkTarget(c.Target)
}

// names of stores and VMs become parts of file names and of URLs.
var names = regexp.MustCompile(`^[^/\x00-\x1f\x7f]{1,255}$`)

func (r *reader) checkStore(key string, s Store) {
	r.checkName(key+".name", s.Name)
	if s.Source == "" {
		r.failAt(key+".source", "is missing: the directory that holds the disk images")
	}
	if s.Mount == "" {
		r.failAt(key+".mount", "is missing: the directory at which virtual machines open them")
	}
	for i, vm := range s.VMs {
		vmKey := fmt.Sprintf("%s.vms[%d]", key, i)
		r.checkName(vmKey+".name", vm.Name)
		r.checkGlobs(vmKey+".disks", vm.Disks)
		r.checkGlobs(vmKey+".exclude", vm.Exclude)
	}
}

func (r *reader) checkName(key, name string) {
	switch {
	case name == "":
		r.failAt(key, "is missing")
	case !names.MatchString(name) || name == "." || name == "..":
		r.failAt(key, "%q is no name: 1 … 255 bytes, without slashes and control characters", name)
	}
}

// checkGlobs refuses patterns that can match nothing below a source.
func (r *reader) checkGlobs(key string, globs []string) {
	for i, g := range globs {
		at := fmt.Sprintf("%s[%d]", key, i)
		_, err := path.Match(g, "")
		switch {
		case g == "" || err != nil:
			r.failAt(at, "%q is not a pattern: * ? [a-z] and \\ as in a shell", g)
		case path.IsAbs(g) || g != path.Clean(g) || strings.HasPrefix(g, "../"):
			r.failAt(at, "%q must be a plain path relative to the store's source", g)
		}
	}
}

// checkDirectories refuses every nesting that would make the appliance serve or replicate itself.
func (r *reader) checkDirectories(c *Config) {
	type dir struct{ key, path string }
	var dirs []dir
	for i, s := range c.Stores {
		key := fmt.Sprintf("stores[%d]", i)
		dirs = append(dirs, dir{key + ".source", s.Source}, dir{key + ".mount", s.Mount})
	}
	for i, a := range dirs {
		for _, b := range dirs[:i] {
			switch {
			case a.path == "" || b.path == "":
			case a.path == b.path:
				r.failAt(a.key, "is the same directory as %s", b.key)
			case inside(a.path, b.path):
				r.failAt(a.key, "%s lies inside %s %s", a.path, b.key, b.path)
			case inside(b.path, a.path):
				r.failAt(a.key, "%s contains %s %s", a.path, b.key, b.path)
			}
		}
		if a.path != "" && (c.StateDir == a.path || inside(c.StateDir, a.path)) {
			r.failAt("state_dir", "%s lies inside %s %s", c.StateDir, a.key, a.path)
		}
	}
}

// inside reports whether a clean absolute path lies below another.
func inside(inner, outer string) bool {
	rel, err := filepath.Rel(outer, inner)
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../")
}

// checkNames refuses a name given twice. VM names share one name space at the target, whatever store they are in.
func (r *reader) checkNames(c *Config) {
	stores, vms := map[string]string{}, map[string]string{}
	once := func(seen map[string]string, key, name string) {
		if first, dup := seen[name]; dup && name != "" {
			r.failAt(key, "%q is already the name of %s", name, first)
			return
		}
		seen[name] = parent(key)
	}
	for i, s := range c.Stores {
		key := fmt.Sprintf("stores[%d]", i)
		once(stores, key+".name", s.Name)
		for j, vm := range s.VMs {
			once(vms, fmt.Sprintf("%s.vms[%d].name", key, j), vm.Name)
		}
	}
}

func (r *reader) checkTarget(t Target) {
	const key = "target.url"
	if t.URL == "" {
		r.failAt(key, "is missing: https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX] or dir:///PATH")
		return
	}
	u, err := url.Parse(t.URL)
	if err != nil {
		// The error of url.Parse repeats the URL, and with it whatever secret somebody put there.
		r.failAt(key, "is not a URL")
		return
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		r.failAt(key, "must carry no user, query or fragment: a secret belongs into credentials.file")
		return
	}
	switch u.Scheme {
	case "dir":
		r.checkDirTarget(key, u)
		return
	case "https", "http":
		r.checkBlobTarget(key, u)
	default:
		r.failAt(key, "%q is none of https, http, dir", u.Scheme)
	}
	if t.Credentials.Type != CredentialDefault && t.Credentials.File == "" {
		r.failAt("target.credentials.file", "is missing: credentials of type %s are read from a file", t.Credentials.Type)
	}
}

func (r *reader) checkDirTarget(key string, u *url.URL) {
	if u.Host != "" || !path.IsAbs(u.Path) || path.Clean(u.Path) == "/" {
		r.failAt(key, "must name a directory by its absolute path: dir:///mnt/nas/replicas")
	}
}

// checkBlobTarget wants a container behind the host, or behind the account where the URL is an emulator's.
func (r *reader) checkBlobTarget(key string, u *url.URL) {
	local := loopback(u.Hostname())
	if u.Scheme == "http" && !local {
		r.failAt(key, "http is for an emulator on a loopback address only; use https for %s", u.Hostname())
		return
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if local || net.ParseIP(u.Hostname()) != nil {
		parts = parts[1:]
	}
	if u.Hostname() == "" || len(parts) == 0 || parts[0] == "" {
		r.failAt(key, "names no container: https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]")
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
