// Package durable replaces and removes small files so that a power cut finds the old one or the new one, never a part.
//
// It is the one place that knows the recipe (temporary file in the same directory, write, fsync, rename, fsync of the
// directory), and the seam at which tests fail the k-th operation or cut the power. A leaf: it imports nothing of ours.
package durable
