#!/bin/bash
# Builds Kubernetes 1.20.2's server binaries and the pause program from Debian bookworm's `kubernetes` source package.
# usage: build.sh OUT        environment: WORK (sources and objects, about 1.5 GB), GOCACHE (Go's object cache)
#
# About 8 minutes on two cores with an empty object cache, one minute with a full one. The caller keys its
# cache on this file's hash: what is built must depend on nothing else.
set -euo pipefail
OUT=$(realpath -m "$1")
WORK=$(realpath -m "${WORK:-$OUT.work}")
TREE=$WORK/gopath/src/k8s.io/kubernetes
# Module mode wants modules that Debian's tarball does not vendor; GOPATH mode is what Debian builds with.
export GO111MODULE=off GOPATH=$WORK/gopath GOFLAGS= CGO_ENABLED=0 GOCACHE=${GOCACHE:-$WORK/gocache}

fetch_source() {
  mkdir -p "$WORK/source" "$WORK/apt-lists/partial"
  cd "$WORK/source"
  # The machine's own mirror, but its source list and index apart from the machine's.
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' | sort -u | head -n 1)
  : "${mirror:?apt knows no Debian bookworm mirror}"
  echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" > "$WORK/sources.list"
  local apt=(apt-get -o "Dir::Etc::sourcelist=$WORK/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$WORK/apt-lists")
  "${apt[@]}" update -qq
  "${apt[@]}" source -qq --download-only kubernetes
  rm -rf kubernetes-1.20*
  dpkg-source --no-check -x kubernetes_*.dsc

  # The vendored reflect2 1.0.1 corrupts memory on Go >= 1.18: the API server crashes at the first custom resource.
  apt-get download -qq golang-github-modern-go-reflect2-dev
  dpkg -x golang-github-modern-go-reflect2-dev_*.deb reflect2
  local vendored
  vendored=$(echo kubernetes-1.20*/vendor/github.com/modern-go)
  rm -rf "$vendored/reflect2"
  cp -r reflect2/usr/share/gocode/src/github.com/modern-go/reflect2 "$vendored/"

  mkdir -p "$(dirname "$TREE")"
  mv kubernetes-1.20* "$TREE" # last: a tree that is there is complete
}

# The one generated file that the tarball lacks.
generate_openapi() {
  go build -o "$WORK/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  local inputs
  inputs=$(grep -rlE --include='*.go' '\+k8s:openapi-gen=' cmd pkg plugin staging/src/k8s.io \
    | grep -v -e code-generator/ -e sample-apiserver/ -e /testdata/ \
    | xargs -n1 dirname | sed -e 's#^staging/src/#vendor/#' -e 's#^#k8s.io/kubernetes/#' | LC_ALL=C sort -u | paste -sd,)
  "$WORK/openapi-gen" --logtostderr -i "$inputs" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$WORK/openapi-violations.txt"
}

build() {
  local flags="-s -w" package value
  for package in client-go/pkg/version component-base/version; do
    for value in gitVersion=v1.20.2 gitMajor=1 gitMinor=20 gitTreeState=clean gitCommit=debian buildDate=2021-01-13T13:20:00Z; do
      flags+=" -X k8s.io/kubernetes/vendor/k8s.io/$package.$value"
    done
  done
  mkdir -p "$OUT"
  go build -p 2 -trimpath -tags "providerless dockerless" -ldflags "$flags" -o "$OUT/" \
    ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler ./cmd/kubelet ./cmd/kube-proxy
  gcc -Os -static -DVERSION=v3.2 -o "$OUT/pause" build/pause/linux/pause.c
  strip "$OUT/pause"
}

[ -d "$TREE" ] || fetch_source
cd "$TREE"
[ -f pkg/generated/openapi/zz_generated.openapi.go ] || generate_openapi
build
