package stage

// qemuIO writes, zeroes and discards in every cache mode with every kind of asynchronous I/O that qemu takes with it,
// and reads the patterns back.
const qemuIO = `
for format in raw vpc; do
	ext=$format options=
	if [ $format = vpc ]; then ext=vhd options='-o subformat=fixed,force_size=on'; fi
	for mode in none/threads none/native none/io_uring directsync/threads directsync/native directsync/io_uring \
		writeback/threads writeback/io_uring writethrough/threads writethrough/io_uring unsafe/threads unsafe/io_uring; do
		cache=${mode%/*} aio=${mode#*/}
		disk=$format-$cache-$aio.$ext
		if [ $ROUND = 1 ]; then
			qemu-img create -q -f $format $options $disk 4M
			qemu-io -f $format -t $cache -i $aio -c 'write -P 9 3584k 512k' $disk
		else
			qemu-io -f $format -t $cache -i $aio -d unmap -c 'discard 3584k 256k' -c 'write -z -u 3840k 64k' \
				-c 'write -z 3904k 4k' -c 'write -P 10 3908k 4k' $disk
		fi
		qemu-io -f $format -t $cache -i $aio -d unmap \
			-c "write -P 1$ROUND 0 64k" -c 'write -P 2 4k 4k' -c 'writev -P 3 100k 4k 8k 512' -c 'write -P 4 8704 512' \
			-c "write -P 5$ROUND 1M 256k" -c 'write -z 1M 64k' -c 'write -z -u 1088k 64k' -c 'discard 1152k 64k' \
			-c 'aio_write -P 6 2M 512k' -c 'aio_write -P 7 3M 512k' -c aio_flush -c flush \
			-c 'read -P 2 4k 4k' -c 'read -P 3 100k 12k' -c 'read -P 4 8704 512' -c 'read -P 0 1M 128k' \
			-c "read -P 5$ROUND 1216k 64k" -c 'read -P 7 3M 512k' $disk
	done
done
qemu-img create -q -f raw zeroes.raw 4M
qemu-io -c 'write -P 8 0 4M' -c 'write -P 0 1M 1M' -c 'discard 2M 1M' -c flush \
	--image-opts driver=raw,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=zeroes.raw
test $(($(stat -c %b zeroes.raw) / 2)) -le 2100
`

// qemuImg makes, converts, copies and resizes images right in the store.
const qemuImg = `
fixed='-O vpc -o subformat=fixed,force_size=on'
if [ $ROUND = 2 ]; then
	qemu-io -c 'write -P 7 2M 1M' -c 'write -z 10M 512k' -c 'write -P 8 11M 4k' "$TMP/x.qcow2"
	for cache in none writeback directsync unsafe; do
		qemu-img convert -n -t $cache -T $cache -O raw "$TMP/x.qcow2" $cache-a.raw
		qemu-img convert -n -W -t $cache -O vpc "$TMP/x.qcow2" $cache-b.vhd
		qemu-img compare -f raw -F qcow2 $cache-a.raw "$TMP/x.qcow2"
		qemu-img compare -f vpc -F qcow2 $cache-b.vhd "$TMP/x.qcow2"
	done
	qemu-img resize -q -f raw --shrink falloc.raw 16M
	qemu-img resize -q -f raw dd.raw 9M
	qemu-img bench -q -f raw -w -n -t none -i native -c 500 -s 4k -S 69632 offloaded.raw
	exit
fi
qemu-img create -q -f qcow2 "$TMP/x.qcow2" 12M
qemu-io -c 'write -P 9 1M 3M' -c 'write -P 4 10M 1M' "$TMP/x.qcow2"
for cache in none writeback directsync unsafe; do
	qemu-img convert -t $cache -T $cache -O raw "$TMP/x.qcow2" $cache-a.raw
	qemu-img convert -t $cache $fixed "$TMP/x.qcow2" $cache-b.vhd
	qemu-img compare -f raw -F qcow2 $cache-a.raw "$TMP/x.qcow2"
	qemu-img compare -f vpc -F qcow2 $cache-b.vhd "$TMP/x.qcow2"
done
qemu-img create -q -f raw -o preallocation=falloc falloc.raw 12M
qemu-img create -q -f raw -o preallocation=full full.raw 4M
qemu-img convert -W -m 8 -n -O raw "$TMP/x.qcow2" falloc.raw
qemu-img convert -C -f raw -O raw falloc.raw offloaded.raw
qemu-img dd -f raw -O raw bs=1M if=falloc.raw of=dd.raw
qemu-img compare -f raw -F raw offloaded.raw dd.raw
qemu-img resize -q -f raw falloc.raw 20M
qemu-io -f raw -c 'write -P 3 19M 1M' falloc.raw
qemu-img resize -q --shrink -f raw dd.raw 3M
qemu-img bench -q -f raw -w -n -t none -i native -c 500 -s 4k -S 36864 offloaded.raw
qemu-img info full.raw
qemu-img map -f raw offloaded.raw
`

// qemuSystem is a machine that never runs, with two disks in its hands: written through its devices, locked against a
// second writer but not against a reader that says it shares, mirrored to another disk of the store, and grown.
const qemuSystem = `
if [ $ROUND = 1 ]; then
	qemu-img create -q -f raw a.raw 8M
	qemu-img create -q -f vpc -o subformat=fixed,force_size=on b.vhd 8M
	qemu-io -f raw -c 'write -P 6 5M 2M' a.raw
fi
qemu-img create -q -f raw mirror.raw 8M
rm -f "$TMP/qmp"
mkfifo "$TMP/qmp"
qemu-system-x86_64 -S -M q35,accel=tcg -m 64 -nodefaults -display none -qmp stdio \
	-blockdev driver=raw,node-name=a,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=a.raw,file.aio=native,file.cache.direct=on \
	-blockdev driver=vpc,node-name=b,file.driver=file,file.filename=b.vhd,file.aio=io_uring,file.cache.direct=on \
	-blockdev driver=raw,node-name=m,file.driver=file,file.filename=mirror.raw \
	-device virtio-blk-pci,drive=a,id=va -device virtio-blk-pci,drive=b,id=vb < "$TMP/qmp" > "$TMP/answers" &
exec 3> "$TMP/qmp"
await() { for i in $(seq 200); do grep -q "$1" "$TMP/answers" && return; sleep 0.1; done; cat "$TMP/answers"; exit 1; }
io() { echo '{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io -d /machine/peripheral/'$1'/virtio-backend \"'"$2"'\""}}' >&3; }
echo '{"execute":"qmp_capabilities"}' >&3
io va 'write -P 1 0 2M'
io va 'write -P 0 1M 512k'
io va 'discard 512k 256k'
if [ $ROUND = 2 ]; then io va 'discard 5M 1M'; io va 'write -z -u 6M 512k'; fi
io vb "write -P 2$ROUND 1M 3M"
io vb 'flush'
echo '{"execute":"query-block"}' >&3
await '"inserted"'
if qemu-io -f raw -c 'write 0 4k' a.raw 2> "$TMP/refused"; then exit 1; fi
grep -q 'Failed to get "write" lock' "$TMP/refused"
qemu-io -r -U -f raw -c 'read -P 1 0 512k' a.raw
echo '{"execute":"blockdev-mirror","arguments":{"job-id":"mirror","device":"a","target":"m","sync":"full"}}' >&3
await BLOCK_JOB_READY
io va 'write -P 5 3M 1M'
echo '{"execute":"block-job-complete","arguments":{"device":"mirror"}}' >&3
await BLOCK_JOB_COMPLETED
echo '{"execute":"block_resize","arguments":{"node-name":"m","size":12582912}}' >&3
echo '{"execute":"quit"}' >&3
exec 3>&-
wait
cat "$TMP/answers"
if grep -q -e '"error"' -e failed -e conflict "$TMP/answers"; then exit 1; fi
test $(stat -c %s mirror.raw) = 12582912
qemu-io -f raw -c 'read -P 1 0 512k' -c 'read -P 0 512k 256k' -c 'read -P 5 3M 1M' mirror.raw
qemu-io -f vpc -c "read -P 2$ROUND 1M 3M" b.vhd
`

// storageDaemon exports disks of the store over NBD, and one as a file through FUSE: a FUSE mount on top of ours.
const storageDaemon = `
if [ $ROUND = 1 ]; then
	qemu-img create -q -f raw nbd.raw 16M
	qemu-img create -q -f vpc -o subformat=fixed,force_size=on fixed.vhd 16M
	qemu-img create -q -f raw fuse.raw 16M
	for disk in nbd.raw fuse.raw; do qemu-io -f raw -c 'write -P 9 10M 3M' $disk; done
	before='write -P 9 12M 4k'
else
	before='discard 12M 1M'
fi
touch "$TMP/fuse"
socket="$TMP/nbd.sock" pid=
stop() { if [ -n "$pid" ]; then kill $pid; wait $pid || true; pid=; fi; }
trap stop EXIT
for aio in threads native io_uring; do
	rm -f "$socket"
	qemu-storage-daemon \
		--blockdev driver=raw,node-name=n,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=nbd.raw,file.aio=$aio,file.cache.direct=on \
		--blockdev driver=vpc,node-name=v,file.driver=file,file.filename=fixed.vhd,file.aio=$aio,file.cache.direct=on \
		--blockdev driver=raw,node-name=f,discard=unmap,file.driver=file,file.filename=fuse.raw,file.aio=$aio,file.cache.direct=on \
		--nbd-server addr.type=unix,addr.path="$socket" \
		--export type=nbd,id=n,node-name=n,name=n,writable=on --export type=nbd,id=v,node-name=v,name=v,writable=on \
		--export type=fuse,id=f,node-name=f,mountpoint="$TMP/fuse",writable=on,growable=on &
	pid=$!
	for i in $(seq 100); do mountpoint -q "$TMP/fuse" && break; sleep 0.1; done
	qemu-io -f raw -d unmap -c "$before" -c "write -P 3$ROUND 0 8M" -c 'aio_write -P 4 1M 64k' -c 'aio_write -P 5 9M 512k' -c aio_flush \
		-c 'discard 2M 1M' -c 'write -z -u 4M 1M' -c 'write -P 0 5M 1M' -c 'writev -P 8 7M 4k 8k 512' -c flush \
		-c 'read -P 0 4M 2M' -c 'read -P 4 1M 64k' "nbd+unix:///n?socket=$socket"
	qemu-io -f raw -c "write -P 6$ROUND 1M 4M" -c 'write -P 0 2M 1M' -c flush "nbd+unix:///v?socket=$socket"
	qemu-io -f raw -c "write -P 7$ROUND 1M 4M" -c 'write -P 8 14M 4k' -c flush "$TMP/fuse"
	fallocate -p -o 2M -l 1M "$TMP/fuse"
	if [ $ROUND = 2 ]; then fallocate -p -o 10M -l 1M "$TMP/fuse"; fi
	stop
done
`
