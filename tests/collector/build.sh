#!/bin/sh
# Builds the OpenTelemetry Collector of builder.yaml as target/peers/otelcol.
# Does nothing if it is there; delete the file to build it anew.
set -eu

version=v0.155.0
here=$(cd "$(dirname "$0")" && pwd)
peers=$here/../../target/peers
binary=$peers/otelcol

[ -x "$binary" ] && exit 0
command -v go >/dev/null || {
    echo "build.sh: the Collector is built from source and needs Go 1.25 or later on the PATH" >&2
    exit 1
}

mkdir -p "$peers"
build=$(mktemp -d "$peers/build-otelcol.XXXXXX")
trap 'rm -rf "$build"' EXIT

# The repository around this folder is not the sources' own: no version stamp, no workspace.
export GOFLAGS="-mod=mod -buildvcs=false" GOWORK=off CGO_ENABLED=0

# The builder ends with `go mod tidy`, which also resolves the components' own tests; one of those
# modules cannot be had. The sources are complete by then, so only their absence is an error.
cp "$here/builder.yaml" "$build"
(cd "$build" && GOFLAGS=-buildvcs=false go run "go.opentelemetry.io/collector/cmd/builder@$version" \
    --skip-compilation --config builder.yaml) ||
    echo "build.sh: the builder stopped early; building what it generated" >&2
[ -f "$build/src/main.go" ] || {
    echo "build.sh: the builder generated no sources (see its messages above)" >&2
    exit 1
}

(cd "$build/src" && go build -trimpath -ldflags "-s -w" -o "$build/otelcol" .)
mv "$build/otelcol" "$binary"
