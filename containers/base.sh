#!/usr/bin/env bash
# Make a small Debian with Python from the distribution's packages, and print its name: a base image for a machine that
# reaches no image registry. Needs root, debootstrap and podman. An image that is there already is left as it is.
#
#   containers/base.sh                 localhost/fairvlm-base:bookworm, with Python 3.11
#   MIRROR=URL containers/base.sh      from this mirror, rather than the one that this machine's apt uses
set -euo pipefail

suite=bookworm
image=localhost/fairvlm-base:$suite

if podman image exists "$image"; then
    echo "$image is there already. To make it anew: podman rmi $image" >&2
    echo "$image"
    exit
fi

# shellcheck disable=SC2016 # the dollars are apt's
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite="$suite" '$2 == suite && !found { print $1; found = 1 }')}
root=$(mktemp --directory)
trap 'rm --recursive --force --one-file-system "$root"' EXIT

echo "Putting $suite together from its packages." >&2
# Without a mirror, debootstrap takes its own.
debootstrap --variant=minbase --include=python3-venv,ca-certificates,libstdc++6,libgomp1 "$suite" "$root" \
    ${mirror:+"$mirror"} > "$root.log" 2>&1 ||
    { tail "$root.log" >&2; echo "debootstrap failed; all it said is in $root.log." >&2; exit 1; }
rm "$root.log"
tar --create --directory "$root" --numeric-owner --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./proc/*' \
    --exclude='./sys/*' --exclude='./var/log/*' . |
    podman import --quiet --change 'CMD ["python3"]' - "$image" > /dev/null
echo "$image"
