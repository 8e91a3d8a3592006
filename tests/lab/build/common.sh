# What the build's steps share. Sourced; they are started by tests/src/lab/image.rs with
# SOURCES (apt's, one-line form), APTOPTS (apt's settings on this machine), WORK (an empty directory, removed by the caller)
# and OUT (a directory that is moved into place when the step has succeeded).
set -euo pipefail
: "${SOURCES:?}" "${APTOPTS:?}" "${WORK:?}" "${OUT:?}"
guest=$(cd "$(dirname "${BASH_SOURCE[0]}")/../guest" && pwd)
SUITE=bookworm
FLAVOUR=cloud-amd64
chmod 755 "$WORK"

say() { printf 'lab: %s\n' "$*"; }

# words FILE: the words of a list, without its comments.
words() { sed 's/#.*//' "$1" | tr -s ' \n' '\n\n' | sed '/^$/d'; }

# system VARIANT DIR OPTION...: a system of Debian's packages in a directory.
system() {
  local variant=$1 dir=$2; shift 2
  mmdebstrap --quiet --mode=root --variant="$variant" --format=directory --aptopt="$APTOPTS" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    "$@" "$SUITE" "$dir" "$SOURCES"
}
