package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/vhd"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
)

// DefaultDepth is how many images a chain may have, the leaf counted.
const DefaultDepth = 64

// What breaks a chain besides a parent that is not there; each is image.ErrParent as well.
var (
	// ErrLinkage: what has the parent's name is another image.
	ErrLinkage = fmt.Errorf("%w: another image has its name", image.ErrParent)
	// ErrStale: the parent has the right id, and was written after its child was made.
	ErrStale = fmt.Errorf("%w: it has changed since", image.ErrParent)
	// ErrCycle: an image lies over itself.
	ErrCycle = fmt.Errorf("%w: the chain is a circle", image.ErrParent)
	// ErrDepth: more images than Options.Depth.
	ErrDepth = fmt.Errorf("%w: the chain is too long", image.ErrParent)
)

// Member is one image of a chain, as it was when the chain was opened.
type Member struct {
	Name      string // in the store
	Stat      Stat
	Info      image.Info
	Table     *image.Table
	Link      *image.Link // nil in the base
	DataWrite [16]byte    // of a VHDX

	disk   func(parent image.Parent) *image.Disk
	closer io.Closer
}

// Chain is an image and everything it lies over, the leaf first, the base last. An image without a parent is a chain of one.
type Chain struct {
	Members []Member
	disk    *image.Disk
}

// Leaf is the image a chain begins with: R may be a sealed view of it, of Stat.Size bytes.
type Leaf struct {
	Name string // in the store
	R    io.ReaderAt
	Stat Stat
}

// Options of Open. Zero values are the defaults.
type Options struct {
	Depth int
	// Known is what the chain was when its links were found good. A link that it has, with the same parent, is not held
	// against the time stamp again: a merge writes to a parent long before its tool writes new links.
	Known Identity
}

// Open opens a leaf and finds its parents in the store. Errors are *image.Error with the name in the store: around
// image.ErrParent where the chain is broken, else as vhd.Open and vhdx.Open say. Close the chain; the leaf is not closed.
func Open(s Store, leaf Leaf, o Options) (*Chain, error) {
	if o.Depth == 0 {
		o.Depth = DefaultDepth
	}
	m, err := load(leaf.Name, leaf.R, leaf.Stat)
	if err != nil {
		return nil, err
	}
	f := finder{Store: s, Options: o, chain: &Chain{Members: []Member{m}}}
	if err := f.find(); err != nil {
		return nil, errors.Join(err, f.chain.Close())
	}
	for _, m := range slices.Backward(f.chain.Members) {
		if f.chain.disk == nil {
			f.chain.disk = m.disk(nil)
		} else {
			f.chain.disk = m.disk(f.chain.disk)
		}
	}
	return f.chain, nil
}

// find looks for all parents of the last member.
func (f *finder) find() error {
	for {
		m := f.chain.Members[len(f.chain.Members)-1]
		if m.Link == nil {
			return nil
		}
		m, err := f.parent(m)
		if err != nil {
			return err
		}
		f.chain.Members = append(f.chain.Members, m)
	}
}

// Walk describes a file of the store and everything it lies over, for somebody who looks. Where the chain breaks, the members
// up to there come with the error. The files are closed.
func Walk(s Store, name string) ([]Member, error) {
	file, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	m, err := load(name, file, st)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	m.closer = file
	f := finder{Store: s, Options: Options{Depth: DefaultDepth}, chain: &Chain{Members: []Member{m}}}
	err = errors.Join(f.find(), f.chain.Close())
	return f.chain.Members, err
}

// OpenFile is Open of a file of the store, which it closes with the chain.
func OpenFile(s Store, name string, o Options) (*Chain, error) {
	f, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c, err := Open(s, Leaf{name, f, st}, o)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c.Members[0].closer = f
	return c, nil
}

// Close closes the files that were opened for the chain.
func (c *Chain) Close() (err error) {
	for _, m := range c.Members {
		if m.closer != nil {
			err = errors.Join(err, m.closer.Close())
		}
	}
	return err
}

var vhdxSignature = []byte("vhdxfile")

// load opens one image, which kind it is by its content.
func load(name string, r io.ReaderAt, st Stat) (Member, error) {
	m := Member{Name: name, Stat: st}
	head := make([]byte, len(vhdxSignature))
	if n, err := r.ReadAt(head, 0); n < len(head) && err != nil && !errors.Is(err, io.EOF) {
		return m, fmt.Errorf("%s: %w", name, err)
	}
	if bytes.Equal(head, vhdxSignature) {
		i, err := vhdx.Open(r, st.Size)
		if err != nil {
			return m, named(name, err)
		}
		m.Info, m.Table, m.Link, m.DataWrite, m.disk = i.Info, i.Table, i.Link, i.DataWrite, i.Disk
		return m, nil
	}
	i, err := vhd.Open(r, st.Size)
	if err != nil {
		return m, named(name, err)
	}
	m.Info, m.Table, m.Link, m.disk = i.Info, i.Table, i.Link, i.Disk
	return m, nil
}

func named(name string, err error) error {
	e := (*image.Error)(nil)
	if !errors.As(err, &e) || e.Path != "" {
		return err
	}
	c := *e
	c.Path = name
	return &c
}

// ID is what a child's link must name: the unique id of a VHD, the DataWriteGuid of a VHDX, in the order of the file.
func (m Member) ID() [16]byte {
	if m.vhdx() {
		return m.DataWrite
	}
	return m.Info.ID
}

// IDText is ID as tools print it.
func (m Member) IDText() string { return idText(m.vhdx(), m.ID()) }

func (m Member) vhdx() bool { return strings.HasPrefix(string(m.Info.Format), string(image.VHDX)) }

func idText(x bool, id [16]byte) string {
	if x {
		return vhdx.GUIDText(id)
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

type finder struct {
	Store
	Options
	chain *Chain
}

// parent finds the image that a member lies over. Of several that are refused the error is the first one's, or of one that
// has the right id.
func (f *finder) parent(child Member) (Member, error) {
	if len(f.chain.Members) >= f.Depth {
		return Member{}, child.broken("parent locator", child.locatorAt(), fmt.Sprintf("the parent of image %d of the chain", len(f.chain.Members)),
			fmt.Sprintf("at most %d images", f.Depth), "merge some of its images", ErrDepth)
	}
	var refused error
	looked := places(child.Name, child.Link.Locators)
	for _, p := range looked {
		m, err := f.try(child, p)
		switch {
		case err == nil:
			return m, nil
		case errors.Is(err, iofs.ErrNotExist):
		case refused == nil, errors.Is(err, ErrStale) && !errors.Is(refused, ErrStale):
			refused = err
		}
	}
	if refused == nil {
		refused = child.missing(looked)
	}
	return Member{}, refused
}

// try opens what is at a place and holds it against the child's link.
func (f *finder) try(child Member, p place) (Member, error) {
	file, err := f.Open(p.name)
	if errors.Is(err, iofs.ErrNotExist) {
		if other, ok := inOtherLetters(f, p.name); ok {
			p.name = other
			file, err = f.Open(p.name)
		}
	}
	if err != nil {
		return Member{}, child.unreadable(p, err)
	}
	st, err := file.Stat()
	if err != nil {
		return Member{}, errors.Join(child.unreadable(p, err), file.Close())
	}
	m, err := f.linked(child, p, file, st)
	if err != nil {
		return m, errors.Join(err, file.Close())
	}
	m.closer = file
	return m, nil
}

// linked opens an image and says whether it is the child's parent.
func (f *finder) linked(child Member, p place, r io.ReaderAt, st Stat) (Member, error) {
	for _, above := range f.chain.Members {
		if above.Name == p.name || above.Stat.SameFile(st) {
			return Member{}, child.broken("parent locator "+p.by.Kind, p.by.At, fmt.Sprintf("%q, which is %s", p.by.Path, above.Name),
				"an image below it", "the chain is damaged: restore the image that was overwritten", ErrCycle)
		}
	}
	m, err := load(p.name, r, st)
	if err != nil {
		return m, err
	}
	if m.vhdx() != child.vhdx() || !child.Link.Matches(m.ID()) {
		return m, child.broken(child.linkField(), child.Link.IDAt, idText(child.vhdx(), child.Link.ID), fmt.Sprintf("%s, that of %s", m.IDText(), p.name),
			"put the image with the id that was found there in its place", ErrLinkage)
	}
	if !child.vhdx() && !f.Known.hasLink(child, m) && !child.sameTime(m) {
		return m, child.broken("parent time stamp", child.Link.TimeAt, stampText(child.Link.Time),
			fmt.Sprintf("%s or %s, the time stamp and the last change of %s", stampText(m.Info.Created), stampText(st.Modified), p.name),
			fmt.Sprintf("if it was only copied, give it its time back: touch -d %s %s; else restore it as it was when its child was made", stampText(child.Link.Time), p.name), ErrStale)
	}
	return m, nil
}

func stampText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// sameTime says whether the parent is of the time that its child recorded: tools write the footer's or the file's, in seconds.
func (m Member) sameTime(parent Member) bool {
	t := m.Link.Time
	return t.IsZero() || t.Equal(parent.Info.Created) || t.Equal(parent.Stat.Modified.Truncate(time.Second))
}

func (m Member) linkField() string {
	if m.vhdx() {
		return "parent_linkage"
	}
	return "parent unique id"
}

func (m Member) locatorAt() image.FileOffset {
	if len(m.Link.Locators) > 0 {
		return m.Link.Locators[0].At
	}
	return m.Link.IDAt
}

func (m Member) missing(looked []place) error {
	if len(looked) == 0 {
		return m.broken("parent locator", m.locatorAt(), "nothing that leads to a file of the store", "the name of the parent", "write the parent's name into the image with the tool that made it", image.ErrParent)
	}
	names := make([]string, len(looked))
	for i, p := range looked {
		names[i] = p.name
	}
	return m.broken("parent locator "+looked[0].by.Kind, looked[0].by.At, fmt.Sprintf("%q, and there is no %s", looked[0].by.Path, strings.Join(names, ", ")),
		fmt.Sprintf("the image with the id %s", idText(m.vhdx(), m.Link.ID)), "put the parent into the store under that name", image.ErrParent)
}

func (m Member) unreadable(p place, err error) error {
	if errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return m.broken("parent locator "+p.by.Kind, p.by.At, fmt.Sprintf("%q, and %s cannot be read", p.by.Path, p.name), "an image",
		"make it readable", errors.Join(image.ErrParent, err))
}

func (m Member) broken(field string, at image.FileOffset, found, expected, hint string, err error) error {
	return &image.Error{Path: m.Name, Field: field, Offset: at, Found: found, Expected: expected, Hint: hint, Err: err}
}
