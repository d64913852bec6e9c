package stage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// dynamicOwnership is what libvirt does around a machine's life: labels, remembered in xattrs, the image given to the
// user qemu runs as and taken back. The store's own mode decides at the mount as well: 0700 keeps qemu out.
const dynamicOwnership = `
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
if [ $ROUND = 1 ]; then
	qemu-img create -q -f raw a.raw 4M
	qemu-img create -q -f vpc -o subformat=fixed,force_size=on b.vhd 4M
fi
for disk in a.raw b.vhd; do
	format=raw
	if [ $disk = b.vhd ]; then format=vpc; fi
	setfattr -n trusted.libvirt.security.dac -v '+0:+0' $disk
	setfattr -n trusted.libvirt.security.ref_dac -v 1 $disk
	setfattr -n security.selinux -v system_u:object_r:svirt_image_t:s0:c1,c2 $disk
	test "$(getfattr --only-values -n security.selinux $disk)" = system_u:object_r:svirt_image_t:s0:c1,c2
	getfattr -d -m - $disk | grep -q trusted.libvirt.security.ref_dac
	chmod 0600 $disk
	if as_nobody qemu-io -f $format -c 'write 0 4k' $disk; then exit 1; fi
	chown 65534:65534 $disk
	as_nobody qemu-io -f $format -t none -i native -c "write -P 1$ROUND 0 1M" -c 'discard 64k 64k' $disk
	as_nobody qemu-io -f $format -t writeback -i io_uring -c "write -P 2$ROUND 2M 1M" $disk
	chmod 0640 $disk
	chown 0:0 $disk
	setfattr -x trusted.libvirt.security.ref_dac $disk
	setfattr -x trusted.libvirt.security.dac $disk
	if as_nobody qemu-io -f $format -c 'write 0 4k' $disk; then exit 1; fi
done

# The store is 0700: nobody gets in by name. Its parent may stay closed, that keeps everybody from the files themselves.
chown 65534:65534 a.raw
cd "$MOUNT"
chmod 0700 .
if as_nobody qemu-io -f raw -c 'write 0 4k' libvirt/a.raw; then exit 1; fi
chmod 0711 .
as_nobody qemu-io -f raw -c "write -P 3$ROUND 3M 4k" libvirt/a.raw
if as_nobody qemu-io -f raw -c 'write 0 4k' "$SOURCE/a.raw"; then exit 1; fi
test "$(stat -c %a "$SOURCE/..")" = 711
chown 0:0 libvirt/a.raw
`

// libvirt is its dynamic ownership and its lock daemon.
func (x *clients) libvirt(ctx context.Context) error {
	for _, round := range []string{"ROUND=1", "ROUND=2"} {
		if err := x.script(ctx, dynamicOwnership, round, "MOUNT="+x.rig.Mount, "SOURCE="+x.source()); err != nil {
			return err
		}
		if _, err := x.judge(ctx); err != nil {
			return err
		}
	}
	return x.lockDaemon(ctx)
}

// lockDaemon locks byte 0 as virtlockd does. Another lock is refused, qemu with its own locks on other bytes is not.
func (x *clients) lockDaemon(ctx context.Context) error {
	path := filepath.Join(x.dir(), "a.raw")
	first, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer first.Close()
	second, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer second.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	if err := unix.FcntlFlock(first.Fd(), unix.F_SETLK, &lock); err != nil {
		return fmt.Errorf("virtlockd's lock: %w", err)
	}
	// In one process only a lock of the open file description conflicts with one of the process.
	if err := unix.FcntlFlock(second.Fd(), unix.F_OFD_SETLK, &lock); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("a second lock on the same byte: %v, want EAGAIN", err)
	}
	return command(ctx, "qemu-io", "-f", "raw", "-c", "write -P 4 1M 4k", path)
}

// moveIn are the file steps of the README for a machine of libvirt: its directory goes into the store, the path in its
// XML changes. The appliance is stopped.
const moveIn = `
mv "$TMP/images" "$SOURCE"
sed -i "s|$TMP/images/|$MOUNT/|" "$TMP/domain.xml"
`

// movedIn takes a machine over that was there before the appliance was.
func (x *clients) movedIn(ctx context.Context) error {
	err := x.script(ctx, `
mkdir "$TMP/images"
qemu-img create -q -f raw "$TMP/images/os.raw" 8M
qemu-io -f raw -c 'write -P 7 0 3M' "$TMP/images/os.raw"
chown 65534:65534 "$TMP/images/os.raw"
echo nvram > "$TMP/images/VARS.fd"
echo "<disk type='file'><driver name='qemu' type='raw' cache='none' io='native'/><source file='$TMP/images/os.raw'/></disk>" > "$TMP/domain.xml"
rmdir "$PWD"
`)
	if err != nil {
		return err
	}
	if err := x.rig.Stop(); err != nil {
		return err
	}
	env := []string{"TMP=" + x.scratch(), "SOURCE=" + x.source(), "MOUNT=" + x.dir()}
	if err := command(ctx, "env", append(env, "sh", "-euc", moveIn)...); err != nil {
		return err
	}
	if err := x.rig.Start(ctx); err != nil {
		return err
	}
	return x.script(ctx, `
disk=$(sed -n "s/.*source file='\([^']*\)'.*/\1/p" "$TMP/domain.xml")
test "$disk" = "$PWD/os.raw"
test "$(stat -c %u "$disk")" = 65534
qemu-io -f raw -t none -i native -c 'read -P 7 0 3M' -c 'write -P 8 4M 1M' "$disk"
test "$(cat VARS.fd)" = nvram
`)
}

// sambaScript shares the whole mount on a port of its own and uses it as a client would.
const sambaScript = `
for d in private lock state cache pid rpc; do mkdir -p "$TMP/$d"; done
cat > "$TMP/smb.conf" <<END
[global]
 smb ports = $PORT
 interfaces = lo
 bind interfaces only = yes
 private dir = $TMP/private
 lock directory = $TMP/lock
 state directory = $TMP/state
 cache directory = $TMP/cache
 pid directory = $TMP/pid
 ncalrpc dir = $TMP/rpc
 log file = $TMP/log
 map to guest = Bad User
 guest account = root
 disable spoolss = yes
[vhd]
 path = $PWD
 guest ok = yes
 writable = yes
 store dos attributes = yes
END
setsid smbd -F --no-process-group -s "$TMP/smb.conf" < /dev/null > "$TMP/smbd.out" 2>&1 &
trap 'kill $(cat "$TMP/pid/smbd.pid")' EXIT # in a session of its own, because it ends its whole process group
smb() { smbclient -s "$TMP/smb.conf" -p $PORT -N //127.0.0.1/vhd -c "$1"; }
for i in $(seq 100); do smb ls && break; sleep 0.1; done
head -c 6M /dev/urandom > "$TMP/blob"
truncate -s 8M "$TMP/blob"
smb "put $TMP/blob a.raw; put $TMP/blob b.raw; rename b.raw c.raw; mkdir d; rename c.raw d/c.raw; rename d/c.raw c.raw; rmdir d; put $TMP/blob gone.raw; del gone.raw"
smb "get a.raw $TMP/back; allinfo a.raw"
cmp "$TMP/blob" "$TMP/back"
head -c 3M /dev/urandom > "$TMP/blob2"
smb "put $TMP/blob2 c.raw" # over a disk that is there
cmp "$TMP/blob2" c.raw
smb "put $TMP/blob2 after.raw"
test ! -e gone.raw
`

// samba is a share of the mount. The kernel's own client (mount.cifs) is not needed for it.
func (x *clients) samba(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return err
	}
	return x.script(ctx, sambaScript, "PORT="+strconv.Itoa(port))
}

// handles is what a kernel NFS server does with a file: it remembers a handle and opens by it.
func (x *clients) handles(ctx context.Context) error {
	path := filepath.Join(x.dir(), "a.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	if _, err := x.judge(ctx); err != nil {
		return err
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return fmt.Errorf("name_to_handle_at: %w", err)
	}
	root, err := os.Open(x.rig.Mount)
	if err != nil {
		return err
	}
	defer root.Close()
	fd, err := unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_RDWR)
	if err != nil {
		return fmt.Errorf("open_by_handle_at: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.WriteAt([]byte("through a handle"), 4096)
	return errors.Join(err, f.Sync(), f.Close())
}
