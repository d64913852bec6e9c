package fs

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ownXattrs is the name space of the appliance's marks on the backing files. At the mount they are neither seen nor
// changed: a guest must not be able to take a suspect mark off.
const ownXattrs = "user.vhdrelay."

const trustedXattrs = "trusted."

func isOwnXattr(name string) bool { return strings.HasPrefix(name, ownXattrs) }

// accessACL and defaultACL are the attributes that hold POSIX ACLs. The kernel judges by them (CAP_POSIX_ACL); the mode
// alone would show an ACL's mask as the group's rights.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// hasDefaultACL says whether the directory gives an ACL to what is made in it.
func (n *node) hasDefaultACL() bool {
	size, err := unix.Getxattr(n.proc(), defaultACL, nil)
	return err == nil && size > 0
}

// GetXAttr reads an attribute.
func (s *store) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	if isOwnXattr(name) {
		return 0, fuse.ENOATTR
	}
	size, err := unix.Getxattr(n.proc(), name, dest)
	return uint32(max(size, 0)), status(err)
}

// ListXAttr lists the attributes but ours, and to others than root not the trusted ones, as file systems do.
func (s *store) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	list, err := listXattrs(n.proc())
	if err != nil {
		return 0, status(err)
	}
	var shown []byte
	for name := range bytes.SplitAfterSeq(list, []byte{0}) {
		hidden := bytes.HasPrefix(name, []byte(ownXattrs)) || in.Uid != 0 && bytes.HasPrefix(name, []byte(trustedXattrs))
		if !hidden {
			shown = append(shown, name...)
		}
	}
	if len(dest) > 0 && len(shown) > len(dest) {
		return uint32(len(shown)), fuse.ERANGE
	}
	copy(dest, shown)
	return uint32(len(shown)), fuse.OK
}

// listXattrs reads the whole list, however it grows meanwhile.
func listXattrs(path string) ([]byte, error) {
	for {
		size, err := unix.Listxattr(path, nil)
		if err != nil || size == 0 {
			return nil, err
		}
		list := make([]byte, size)
		if size, err = unix.Listxattr(path, list); err != unix.ERANGE {
			return list[:max(size, 0)], err
		}
	}
}

// SetXAttr sets an attribute that is not ours.
func (s *store) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	if isOwnXattr(name) {
		return fuse.EPERM
	}
	return status(s.once(deed{
		unique: in.Unique, before: [2]uint64{n.hasXattr(name)},
		did: func(before [2]uint64) bool {
			return in.Flags&unix.XATTR_CREATE != 0 && before[0] == 0 && n.hasXattr(name) != 0
		},
		do: func() error { return unix.Setxattr(n.proc(), name, value, int(in.Flags)) },
	}))
}

// RemoveXAttr removes an attribute that is not ours.
func (s *store) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	if isOwnXattr(name) {
		return fuse.EPERM
	}
	return status(s.once(deed{
		unique: in.Unique, before: [2]uint64{n.hasXattr(name)},
		did: func(before [2]uint64) bool { return before[0] != 0 && n.hasXattr(name) == 0 },
		do:  func() error { return unix.Removexattr(n.proc(), name) },
	}))
}

// hasXattr is 1 if the file has the attribute.
func (n *node) hasXattr(name string) uint64 {
	if _, err := unix.Getxattr(n.proc(), name, nil); err != nil {
		return 0
	}
	return 1
}
