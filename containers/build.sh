#!/usr/bin/env bash
# Build the image of the steps with podman, labelled with version and commit, and print its name and digest.
#
#   containers/build.sh                              with the wheels of the package index
#   containers/build.sh --wheels FOLDER              without a network, with the wheels in this folder
#   containers/build.sh --build-arg TORCH_INDEX=URL  what else is given goes to `podman build`
#
# IMAGE is its name (localhost/fairvlm, tagged with the commit), BASE_IMAGE what it stands on, SOURCE the URL of the code.
set -euo pipefail
cd "$(dirname "$0")/.."

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
tag=${revision:0:12}
if [ "$revision" != unknown ] && [ -n "$(git status --porcelain)" ]; then
    echo "The working tree differs from its commit, and the image will say so." >&2
    revision=$revision-changed
    tag=$tag-changed
fi
image=${IMAGE:-localhost/fairvlm:$tag}
options=(
    --tag "$image"
    --build-arg "REVISION=$revision"
    --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
)
[ -z "${BASE_IMAGE:-}" ] || options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
[ -z "${SOURCE:-}" ] || options+=(--build-arg "SOURCE=$SOURCE")
if [ "${1:-}" = --wheels ]; then
    [ -d "${2:-}" ] || {
        echo "--wheels needs a folder. Mend: pip wheel --requirement requirements.lock --wheel-dir FOLDER" >&2
        exit 2
    }
    wheels=$(cd "$2" && printf '%s\n' *.whl | sha256sum | cut --characters 1-16)
    options+=(--build-context "wheels=$(realpath "$2")" --build-arg "WHEELS=$wheels" --network none)
    shift 2
fi

podman build "${options[@]}" "$@" . >&2
echo "$image@$(podman image inspect --format '{{.Digest}}' "$image")"
