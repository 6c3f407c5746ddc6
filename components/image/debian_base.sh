#!/usr/bin/env bash
# A base image made of Debian packages alone, for machines that reach no image registry; needs root, Podman and
# debootstrap: components/image/debian_base.sh [NAME]
set -euo pipefail
name=${1:-localhost/debian-python:bookworm}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder" >&2
tar -C "$folder" --exclude=./var/cache/apt/archives --exclude=./var/lib/apt/lists -c . | podman import --quiet - "$name"
