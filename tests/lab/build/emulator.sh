#!/bin/bash
# QEMU and nbdkit, unpacked from Debian's packages with the libraries they need, and run from where they lie: a version that is
# known, on a machine whose own QEMU may be another one or conflict with it. Makes root/.
. "$(dirname "$0")/common.sh"
SUITE=trixie
system extract "$OUT/root" --include=qemu-system-x86,nbdkit
cd "$OUT/root"
for dir in lib lib64; do [ -e $dir ] || ln -s usr/$dir $dir; done
rm -rf usr/share/{doc,man,info,locale,bash-completion,icons,zoneinfo,perl,perl5} var/lib/{apt,dpkg}/* var/cache usr/include usr/lib/x86_64-linux-gnu/{perl*,gconv,dri} \
  usr/{bin,libexec}/qemu-system-i386 usr/share/qemu/edk2-* usr/share/OVMF
for file in usr/bin/qemu-system-x86_64 usr/bin/nbdkit lib64/ld-linux-x86-64.so.2 usr/share/seabios/bios-256k.bin; do
  [ -e "$file" ] || { say "Debian's packages have no $file"; exit 1; }
done
lib64/ld-linux-x86-64.so.2 --library-path lib/x86_64-linux-gnu:usr/lib/x86_64-linux-gnu usr/bin/qemu-system-x86_64 --version |
  sed -n 's/^QEMU emulator version \([0-9.]*\).*/qemu \1/p' > "$OUT/versions"
say "QEMU and nbdkit unpacked: $(du -sh . | cut -f1)"
