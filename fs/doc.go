// Package fs serves the directory of a store at a mount point and tells a Tracker of every change of an image before
// and after it happens.
package fs
