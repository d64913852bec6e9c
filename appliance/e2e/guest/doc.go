// Package guest boots Debian 12 in qemu, on an emulated processor, so that no nested virtualization is needed: the
// appliance under a real systemd, a kernel older than the machine's, and a plug that can be pulled.
//
// The root disk is made once (image.sh) and kept below .cache. The host speaks with an agent in the guest over a
// virtio-serial port, a line of JSON each way (package wire); nothing is timed, all waiting is for the agent's lines. What
// the host knows stays outside: the store's disk is served by the host (Disk), with a write cache that forgets what the
// guest's kernel had not flushed when the power goes.
//
// A Drive is the other kind of guest: it knows nothing of the appliance, and its only disk, made by Bootable, may lie anywhere, in
// a mount of the appliance above all. It boots from it by itself, from sector 0 on.
package guest
