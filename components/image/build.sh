#!/usr/bin/env bash
# Build the image of the steps with Docker or Podman: components/image/build.sh [NAME]
#   ENGINE         docker or podman, if both are installed
#   BASE           another base image with Python 3.11
#   SSL_CERT_FILE  a certificate bundle for the build (Podman only)
#   PIP_INDEX_URL, UV_DEFAULT_INDEX  a company's own package registry
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:-localhost/audioscore-python:dev}
engine=${ENGINE:-$(command -v docker >/dev/null && docker info >/dev/null 2>&1 && echo docker || command -v podman || true)}
if [ -z "$engine" ]; then
  echo "neither a running Docker nor Podman was found; install one of them to build images" >&2
  exit 2
fi
options=(--network host --file components/image/Dockerfile --tag "$name")
options+=(--build-arg "REVISION=${AUDIOSCORE_CODE_REVISION:-$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown)}")
for argument in BASE PIP_INDEX_URL UV_DEFAULT_INDEX; do
  [ -z "${!argument:-}" ] || options+=(--build-arg "$argument=${!argument}")
done
if [[ "$engine" == *podman ]]; then
  options+=(--ignorefile components/image/Dockerfile.dockerignore --format docker)
  if [ -n "${SSL_CERT_FILE:-}" ]; then
    bundle=$(readlink -f "$SSL_CERT_FILE")
    options+=(--volume "$bundle:$bundle:ro" --build-arg "SSL_CERT_FILE=$bundle")
  fi
fi
exec "$engine" build "${options[@]}" .
