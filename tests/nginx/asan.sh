#!/usr/bin/env bash
# An nginx and the module for it, both instrumented by AddressSanitizer, in a directory:
#   asan.sh debian DIRECTORY      Debian's own nginx, from Debian's source
#   asan.sh vendored DIRECTORY    the nginx of the crate nginx-src
# Both go by the runtime of Rust's nightly, which nginx brings along: a module has none.
set -eu -o pipefail

version=$1
mkdir -p "$2"
directory=$(cd "$2" && pwd)
repository=$(cd "$(dirname "$0")/../.." && pwd)
sanitize="-fsanitize=address -fno-omit-frame-pointer -g -O1"

# Debian's source package, with package lists of our own: the machine's may have no sources.
debian_source() {
    [ -e "$directory/source/configure" ] && return
    local apt="$directory/apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    echo "deb-src http://deb.debian.org/debian $codename main" > "$apt/sources.list"
    local options=(
        -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=-
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
    )
    apt-get "${options[@]}" -qq update
    (cd "$apt" && apt-get "${options[@]}" -qq --download-only source nginx)
    rm -rf "$directory/source"
    dpkg-source --no-check -x "$apt"/nginx_*.dsc "$directory/source" > "$directory/unpack.log"
}

# The crate's source, as cargo has unpacked it.
vendored_source() {
    local manifest
    manifest=$(cargo metadata --locked --all-features --format-version 1 --manifest-path "$repository/Cargo.toml" |
        python3 -c 'import json, sys
print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "nginx-src"))')
    rm -rf "$directory/source"
    cp -r "$(dirname "$manifest")/nginx" "$directory/source"
}

case $version in
    debian)
        debian_source
        # As Debian's headers package says; its other modules need libraries of their own.
        # shellcheck source=/dev/null
        . /usr/share/nginx/src/conf_flags
        flags=("${NGX_CONF_FLAGS[@]}")
        ;;
    vendored)
        [ -e "$directory/source/src/core/nginx.h" ] || vendored_source
        flags=(--with-compat --with-http_ssl_module --with-http_stub_status_module
            --with-http_v2_module --with-http_auth_request_module --with-http_slice_module
            --with-threads --with-debug)
        ;;
    *) echo "usage: asan.sh debian|vendored DIRECTORY" >&2; exit 2 ;;
esac

runtime=$(rustc +nightly --print sysroot)/lib/rustlib/x86_64-unknown-linux-gnu/lib/librustc-nightly_rt.asan.a
if [ ! -e "$directory/objs/nginx" ]; then
    cd "$directory/source"
    configure=./configure
    [ -x "$configure" ] || configure=./auto/configure
    "$configure" "${flags[@]}" \
        --builddir="$directory/objs" --with-cc=clang --with-cc-opt="$sanitize" \
        --with-ld-opt="-fno-sanitize=address -Wl,--whole-archive $runtime -Wl,--no-whole-archive -Wl,--export-dynamic \
-lpthread -lrt -lm -ldl -lresolv -lgcc_s" > "$directory/configure.log" || {
            tail -5 "$directory/configure.log" >&2; exit 1; }
    make -s -j2 > "$directory/make.log" 2>&1 || { tail -20 "$directory/make.log" >&2; exit 1; }
fi

cd "$repository"
NGINX_SOURCE_DIR=$directory/source NGINX_BUILD_DIR=$directory/objs \
    CARGO_TARGET_DIR=$directory/target RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers=yes" \
    cargo +nightly build --locked -q --release --target x86_64-unknown-linux-gnu \
    -p ngx-http-omnitrace-module
install -m 644 \
    "$directory/target/x86_64-unknown-linux-gnu/release/libngx_http_omnitrace_module.so" "$directory"
