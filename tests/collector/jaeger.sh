#!/bin/sh
# Builds Jaeger all-in-one (v1, in-memory store) as target/peers/jaeger-all-in-one.
# Does nothing if it is there. The Go module carries no UI: pass `--query.static-files DIR`.
set -eu

module=github.com/jaegertracing/jaeger
version=v1.76.0
here=$(cd "$(dirname "$0")" && pwd)
peers=$here/../../target/peers
binary=$peers/jaeger-all-in-one

[ -x "$binary" ] && exit 0
command -v go >/dev/null || {
    echo "jaeger.sh: Jaeger is built from source and needs Go 1.25 or later on the PATH" >&2
    exit 1
}

mkdir -p "$peers"
build=$(mktemp -d "$peers/build-jaeger.XXXXXX")
trap 'rm -rf "$build"' EXIT

export GOFLAGS="-mod=mod -buildvcs=false" GOWORK=off CGO_ENABLED=0

# `go install $module/...@version` refuses modules with a replace directive, so Jaeger becomes a
# tool of an empty module. Its own go.sum comes along: the checksum database lacks some hashes.
cd "$build"
go mod init omnitrace.test/jaeger
source=$(go mod download -json "$module@$version" | sed -n 's/^\t*"Dir": "\(.*\)",*$/\1/p')
[ -f "$source/go.sum" ] || {
    echo "jaeger.sh: $module $version could not be downloaded" >&2
    exit 1
}
cp "$source/go.sum" go.sum
chmod u+w go.sum
go get -tool "$module/cmd/all-in-one@$version"
go build -trimpath -ldflags "-s -w" -o jaeger-all-in-one "$module/cmd/all-in-one"
mv jaeger-all-in-one "$binary"
