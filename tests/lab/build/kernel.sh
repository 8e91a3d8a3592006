#!/bin/bash
# Debian's kernel for virtual machines, and the modules of ZFS built for it: the costly step, minutes of processor time.
# zfs-dkms has the source; it is configured and compiled in a chroot, without dkms. Makes boot/vmlinuz, lib/modules and versions.
. "$(dirname "$0")/common.sh"
builder=$WORK/builder
system essential "$builder" --include=gcc-12,make,libc6-dev,linux-headers-$FLAVOUR --customize-hook='
  cd "$1/root" && release=$(basename "$1"/usr/src/linux-headers-*'$FLAVOUR') &&
  APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq -o APT::Sandbox::User=root download linux-image-"${release#linux-headers-}" zfs-dkms'
release=$(basename "$builder"/usr/src/linux-headers-*$FLAVOUR); release=${release#linux-headers-}
image=$(echo "$builder"/root/linux-image-*.deb) source=$(echo "$builder"/root/zfs-dkms_*.deb)
version() { dpkg-deb -f "$1" Version; }
say "compiling ZFS $(version "$source") for Linux $release"
dpkg-deb -x "$image" "$WORK/kernel"
dpkg-deb -x "$source" "$builder"
cat > "$builder/root/compile" <<END
set -e
cd /usr/src/zfs-*/
export CC=gcc-12 CPP="gcc-12 -E" KCFLAGS=-g0
./configure --quiet --disable-dependency-tracking --prefix=/usr --with-config=kernel \\
  --with-linux=/usr/src/linux-headers-${release%-$FLAVOUR}-common --with-linux-obj=/usr/src/linux-headers-$release
make -s -j\$(nproc)
END
# The mount is in a namespace of its own: one that is cut off leaves nothing mounted.
unshare --mount sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" bash /root/compile' sh "$builder" > "$WORK/compile.log" 2>&1 || {
  tail -40 "$WORK/compile.log"
  say "ZFS does not compile; the above is the end of it"
  exit 1
}
mkdir -p "$OUT/boot" "$OUT/lib"
mv "$WORK/kernel/boot/vmlinuz-$release" "$OUT/boot/vmlinuz"
mv "$WORK/kernel/lib/modules" "$OUT/lib/modules"
mkdir "$OUT/lib/modules/$release/extra"
find "$builder"/usr/src/zfs-*/module -name '*.ko' -exec cp -t "$OUT/lib/modules/$release/extra" {} +
[ -f "$OUT/lib/modules/$release/extra/zfs.ko" ] || { say "there is no zfs.ko"; exit 1; }
strip -g "$OUT/lib/modules/$release"/extra/*.ko
depmod -b "$OUT" "$release"
printf '%s %s %s\n' "$release" "$(version "$image")" "$(version "$source")" > "$OUT/versions"
