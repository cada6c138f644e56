#!/bin/bash
# Builds the API server for custom resources (apiextensions-apiserver) of a current Kubernetes from Debian sid's packages.
# usage: apiextensions.sh OUT        environment: WORK (packages and sources, about 1.5 GB), GOCACHE (Go's object cache)
#
# Go and every library are unpacked into WORK: nothing is installed. Which version that is, sid decides on the day of the
# build; OUT/VERSION says it. The caller keys its cache on this file's hash.
set -euo pipefail
OUT=$(realpath -m "$1")
WORK=$(realpath -m "${WORK:-$OUT.work}")
LIBRARY=golang-k8s-apiextensions-apiserver-dev
# Depended on by tests and by parts of libraries that this program does not use, and most of what would be downloaded.
UNUSED='cloudflare-circl|x-tools|pierrec-lz4|aws-sdk|google-cloud-dev|google-api-dev|gonum|nxadm|mongo|x-image|sha1cd|nats|bubbletea'

mkdir -p "$WORK/lists/partial" "$WORK/packages" "$OUT"
cd "$WORK/packages"
# The machine's own mirror, but source list, index and status apart from the machine's.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' | sort -u | head -n 1)
: "${mirror:?apt knows no Debian bookworm mirror}"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" > "$WORK/sources.list"
options=(-o "Dir::Etc::sourcelist=$WORK/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$WORK/lists"
  -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dir::State::status=/dev/null -o APT::Sandbox::User=root
  -o APT::Install-Recommends=false)
apt-get "${options[@]}" update -qq
# sid's Go may be younger than the one that Kubernetes is built with, which does no harm.
go=$(apt-cache "${options[@]}" depends golang-go | sed -n 's/.*Depends: golang-\(1\.[0-9]*\)-go$/\1/p' | head -n 1)
apt-get "${options[@]}" --simulate install "$LIBRARY" "golang-$go-go" | sed -n 's/^Inst \(golang-[^ ]*\) .*/\1/p' \
  | grep -vE "$UNUSED" | grep -vE '^golang-(go|src)$' | xargs apt-get "${options[@]}" download -qq
for package in *.deb; do dpkg -x "$package" "$WORK/root"; done

export GO111MODULE=off GOPATH=$WORK/root/usr/share/gocode GOFLAGS= CGO_ENABLED=0 GOCACHE=${GOCACHE:-$WORK/gocache}
version=v1.$(dpkg-deb --field "$LIBRARY"_*.deb Version | sed 's/^0\.\([0-9.]*\).*/\1/')
"$WORK/root/usr/lib/go-$go/bin/go" build -p 2 -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" \
  -o "$OUT/apiextensions-apiserver" k8s.io/apiextensions-apiserver
echo "$version" > "$OUT/VERSION"
