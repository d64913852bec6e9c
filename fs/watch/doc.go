// Package watch tells who changes the source of a store behind the appliance's back: every other process that opens,
// writes, makes, renames or removes a file there.
//
// It is built on fanotify(7), which, unlike inotify, names the process of an event: what this process does itself, and
// that is everything the guests do through the mount, is told apart without guessing. It imports nothing of ours, keeps
// no file, and a crash leaves nothing of it. What happens while nobody watches is for the next start to find.
package watch
