#!/usr/bin/env bash
# Build a base image from Debian packages, for machines without access to an image registry: debian_base.sh [NAME]
# It needs root, Podman and debootstrap.
set -euo pipefail
name=${1:-localhost/debian-python:bookworm}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder" >&2
tar -C "$folder" --exclude=./var/cache/apt/archives --exclude=./var/lib/apt/lists -c . | podman import --quiet - "$name"
