// Package systemd runs the appliance under systemd: it holds the unit file, and the four things a service of
// Type=notify tells its manager.
//
// It may import go-systemd and nothing of ours. Its invariants: outside systemd every notification is a no-op, and a
// notification that cannot be delivered never stops the appliance. It owns no file; a crash leaves nothing of it.
package systemd
