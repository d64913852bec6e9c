package fs

import (
	"log/slog"
)

// Options say what to serve and where.
type Options struct {
	Name       string // of the store, shown as fsname=vhdrelay:<name>; default: base name of Mount
	Source     string // directory with the images
	Mount      string // empty directory
	Volumes    Volumes
	Log        *slog.Logger
	Debug      bool // log every request
	AllowOther bool // let users other than the daemon's in; needed by every hypervisor that drops root
}

// Server is a mounted store.
type Server struct{}

// Mount serves opts.Source at opts.Mount. When it returns without an error, requests are answered.
func Mount(opts Options) (*Server, error) { return &Server{}, nil }

// Wait returns when the store is unmounted, by Unmount or from outside.
func (s *Server) Wait() {}

// Unmount detaches the mount. While files are open it fails with EBUSY and nothing changes.
func (s *Server) Unmount() error { return nil }
