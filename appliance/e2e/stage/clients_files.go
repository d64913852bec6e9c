package stage

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// copies are what people do with files by hand.
const copies = `
if [ $ROUND = 2 ]; then
	fallocate -p -o 1M -l 256K in--reflink=auto.raw
	fallocate -z -o 2M -l 100K in--sparse=never.raw
	truncate -s 2M copy--sparse=auto.raw
	truncate -s 8M copy--sparse=auto.raw
	truncate -s 3M copy--sparse=never.raw
	cp --reflink=auto fallocated.raw copy--reflink=auto.raw
	for flag in direct dsync sync direct,dsync append; do
		dd if=/dev/urandom of=dd-$flag.raw bs=64k count=2 seek=$((8)) conv=notrunc oflag=$flag status=none
	done
	dd if=/dev/zero of=dd-sparse.raw bs=1M count=1 conv=notrunc status=none
	fallocate -d dd-sparse.raw
	fallocate -n -l 20M dd-over.raw
	fallocate -l 1M dd-over.raw
	mv back.raw sized.raw
	cp "$TMP/data" "$TMP/moved.raw"
	mv "$TMP/moved.raw" tarred.raw
	exit
fi
head -c 3M /dev/urandom > "$TMP/data"
truncate -s 8M "$TMP/data"
head -c 1M /dev/urandom | dd of="$TMP/data" bs=1M seek=6 conv=notrunc status=none
for how in --reflink=auto --sparse=always --sparse=never --sparse=auto; do
	cp $how "$TMP/data" in$how.raw
	cp $how in$how.raw copy$how.raw
	cmp copy$how.raw "$TMP/data"
done
if cp --reflink=always "$TMP/data" no.raw 2> "$TMP/refused"; then exit 1; fi
if cp --reflink=always copy--sparse=always.raw no.raw 2> "$TMP/refused"; then exit 1; fi
grep -q -e 'not supported' -e 'Inappropriate ioctl' "$TMP/refused"
rm -f no.raw

for flag in direct dsync sync direct,dsync append; do
	truncate -s 4M dd-$flag.raw
	dd if="$TMP/data" of=dd-$flag.raw bs=64k count=20 seek=7 conv=notrunc oflag=$flag status=none
done
dd if="$TMP/data" of=dd-sparse.raw bs=64k conv=sparse,fsync status=none
dd if="$TMP/data" of=dd-over.raw bs=1M status=none
dd if="$TMP/data" of=dd-over.raw bs=4k count=3 seek=5 status=none # truncates

mkdir "$TMP/out"
cp "$TMP/data" tarred.raw
tar -cSf "$TMP/x.tar" tarred.raw
rm tarred.raw
tar -xSf "$TMP/x.tar"
cmp tarred.raw "$TMP/data"
cp "$TMP/data" "$TMP/moved.raw"
mv "$TMP/moved.raw" moved.raw
mv moved.raw "$TMP/out/"
mv "$TMP/out/moved.raw" back.raw
mkdir sub
mv back.raw sub/there.raw
mv sub/there.raw back.raw
rmdir sub
cmp back.raw "$TMP/data"

cp "$TMP/data" sized.raw
truncate -s 1536K sized.raw
truncate -s 5M sized.raw
cp "$TMP/data" fallocated.raw
fallocate -p -o 1M -l 512K fallocated.raw
fallocate -z -o 2M -l 300K fallocated.raw
fallocate -l 9M fallocated.raw
fallocate -n -l 12M fallocated.raw
if fallocate -c -o 0 -l 4K fallocated.raw; then exit 1; fi
dd if=/dev/zero of=dug.raw bs=1M count=4 status=none
fallocate -d dug.raw
test $(stat -c %b dug.raw) -lt 64
`

// rsync updates a disk in its ways: a new file renamed over the old one, in place, and in place with holes.
const rsync = `
if [ $ROUND = 1 ]; then
	head -c 4M /dev/urandom > "$TMP/a.raw"
	truncate -s 8M "$TMP/a.raw"
fi
change() { head -c 64K /dev/urandom | dd of="$TMP/a.raw" bs=4k seek=$1 conv=notrunc status=none; }
for how in '' --inplace --sparse '--inplace --sparse' '--inplace --no-whole-file' --preallocate '--append-verify'; do
	name=r$(echo "$how" | tr -d ' -').raw
	for i in 100 200 300; do
		case "$how" in --append*) head -c 4096 /dev/urandom >> "$TMP/a.raw" ;; *) change $i ;; esac
		rsync --checksum $how "$TMP/a.raw" "$name"
		cmp "$TMP/a.raw" "$name"
	done
done
mkdir -p "$TMP/tree"
rsync -aSX --delete ./ "$TMP/tree/"
rm r.raw
rsync -aSX "$TMP/tree/" ./
cmp r.raw "$TMP/tree/r.raw"
`

const (
	attach = `
umount_all() { umount "$TMP/fs" 2> /dev/null || true; if [ -n "${loop:-}" ]; then losetup -d $loop; fi; }
trap umount_all EXIT
mkdir -p "$TMP/fs"
`
	loopFill = attach + `
truncate -s 64M fs.raw
loop=$(losetup --find --show --direct-io=$DIO fs.raw)
mkfs.ext4 -q -F -E nodiscard $loop
mount $loop "$TMP/fs"
head -c 20M /dev/urandom > "$TMP/fs/large"
head -c 1M /dev/urandom > "$TMP/fs/small"
`
	loopTrim = attach + `
loop=$(losetup --find --show --direct-io=$DIO fs.raw)
mount $loop "$TMP/fs"
rm "$TMP/fs/large"
sync -f "$TMP/fs"
fstrim "$TMP/fs"
`
	loopGrow = attach + `
loop=$(losetup --find --show --direct-io=$DIO fs.raw)
truncate -s 80M fs.raw
losetup -c $loop
test $(blockdev --getsize64 $loop) = $((80 << 20))
e2fsck -f -p $loop
resize2fs $loop # online it needs a capability that containers lack
mount $loop "$TMP/fs"
head -c 4M /dev/urandom > "$TMP/fs/grown"
`
)

// trimmedSize is what a file system with 1 MiB in it may take after fstrim: its journal is the most of it.
const trimmedSize = 12 << 20

// loop is a file system on a loop device over a disk; what it trims must leave the replica.
func (x *clients) loop(ctx context.Context) error {
	for _, dio := range []string{"off", "on"} {
		dio := "DIO=" + dio
		if err := x.script(ctx, loopFill, dio); err != nil {
			return err
		}
		full, _, err := x.stored(ctx)
		if err != nil {
			return err
		}
		if err := x.script(ctx, loopTrim, dio); err != nil {
			return err
		}
		trimmed, moved, err := x.stored(ctx)
		if err != nil {
			return err
		}
		if full < 20<<20 || trimmed > trimmedSize || moved > 1<<20 {
			return fmt.Errorf("%s: the export takes %d bytes before and %d after fstrim of 20 MiB, which moved %d", dio, full, trimmed, moved)
		}
		if err := x.script(ctx, loopGrow, dio); err != nil {
			return err
		}
	}
	if _, err := x.judge(ctx); err != nil {
		return err
	}
	return command(ctx, "e2fsck", "-f", "-n", rig.Exported(x.export(), "fs.raw"))
}

// stored makes a point, and says what its disk takes when it is brought back, and what was stored for it.
func (x *clients) stored(ctx context.Context) (allocated, moved int64, err error) {
	point, err := x.judge(ctx)
	if err != nil {
		return 0, 0, err
	}
	points, err := x.rig.Points(ctx, x.name)
	if err != nil {
		return 0, 0, err
	}
	for _, p := range points {
		for _, d := range p.Disks {
			if p.ID == point && d.Name == "fs.raw" {
				moved += d.StoredBytes
			}
		}
	}
	allocated, err = rig.Allocated(filepath.Join(x.export(), "fs.raw"))
	return allocated, moved, err
}
