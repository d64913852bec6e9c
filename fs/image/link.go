package image

import "time"

// Link says which image a differencing image lies over.
type Link struct {
	// ID must be the parent's: its unique id (VHD) or its DataWriteGuid (VHDX), the bytes as they are in the file.
	ID [16]byte
	// ID2 is also accepted if it is not zero: the parent's DataWriteGuid while a merge was under way (VHDX).
	ID2 [16]byte
	// Time is the parent's modification time as the child recorded it (VHD). Zero if it recorded none, and in a VHDX.
	Time time.Time
	// IDAt and TimeAt are where ID and Time lie in the file.
	IDAt, TimeAt FileOffset
	// Locators are the ways to find the parent, in the order of the file, the parent's name of a VHD last.
	Locators []Locator
}

// Matches says whether an image with this id is the parent.
func (l Link) Matches(id [16]byte) bool {
	return id != [16]byte{} && (id == l.ID || id == l.ID2)
}

// Locator is one way to find a parent. Kind is the format's own word: "W2ru", "W2ku", "MacX", "name" (VHD),
// "relative_path", "volume_path", "absolute_win32_path" (VHDX). Path is as stored: with backslashes, or a file: URL.
type Locator struct {
	Kind, Path string
	At         FileOffset // of the entry that names it
}
