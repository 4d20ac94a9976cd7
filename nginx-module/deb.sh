#!/usr/bin/env bash
# Packs a module that is built for the installed nginx as a Debian package.
#   nginx-module/deb.sh MODULE VERSION FOLDER
set -eu
module=$1 version=$2 folder=$3
here=$(dirname "$0")

# Debian's nginx names the binary interface of its modules; another one must be this very version.
abi=$(dpkg-query -W -f '${Provides}' nginx 2>/dev/null | grep -o 'nginx-abi-[^, ]*' | head -1) ||
    abi=$(dpkg-query -W -f 'nginx (= ${Version})' nginx 2>/dev/null) || {
    echo "no package nginx is installed: whose modules should this one be one of?" >&2
    exit 1
}
libc=$(objdump -T "$module" | grep -o 'GLIBC_[0-9.]*' | sort -V | tail -1)
architecture=$(dpkg --print-architecture)
name=libnginx-mod-http-omnitrace

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
doc=$root/usr/share/doc/$name
install -D -m 644 "$module" "$root/usr/lib/nginx/modules/ngx_http_omnitrace_module.so"
strip --strip-unneeded "$root/usr/lib/nginx/modules/ngx_http_omnitrace_module.so"
install -d -m 755 "$root/usr/share/nginx/modules-available" "$root/DEBIAN"
echo "load_module modules/ngx_http_omnitrace_module.so;" \
    > "$root/usr/share/nginx/modules-available/mod-http-omnitrace.conf"
install -D -m 644 "$here/README.md" "$doc/README.md"
install -m 644 "$here/../LICENSE" "$doc/copyright"
install -m 755 "$here"/debian/* "$root/DEBIAN"
cat > "$root/DEBIAN/control" <<CONTROL
Package: $name
Version: $version
Architecture: $architecture
Maintainer: omnitrace
Depends: $abi, libc6 (>= ${libc#GLIBC_}), libgcc-s1
Section: httpd
Priority: optional
Installed-Size: $(du -sk "$root" | cut -f1)
Description: distributed tracing of LLM serving for nginx
 The root span of each request, a CLIENT span for each upstream try and the
 tokens of streamed answers, sent to an OpenTelemetry Collector.
CONTROL
mkdir -p "$folder"
dpkg-deb --root-owner-group --build "$root" "$folder/${name}_${version}_$architecture.deb"
