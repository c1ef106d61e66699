#!/bin/sh
# Installs what building vfbroker, making the lab's image and comparing with
# lspci needs, on Debian 12 or 13, and nothing that is there already. Packages come through the
# machine's own apt configuration. Run it as root; it may be run again.
set -eu

say() { echo "setup: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# A go command from 1.21 on fetches the toolchain that go.mod names.
oldest_go=1.21

# go_version prints the version of the go command that will be used.
go_version() {
	go=$(command -v go || { [ -x /usr/local/go/bin/go ] && echo /usr/local/go/bin/go; }) || return 0
	GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null | sed 's/^go//; s/[^0-9.].*//'
}
at_least() { # VERSION OLDEST
	[ -n "$1" ] && dpkg --compare-versions "$1" ge "$2"
}
# candidate prints the version of a package that apt would install.
candidate() {
	apt-cache policy "$1" | sed -n 's/^ *Candidate: \(2:\)\{0,1\}\([0-9][0-9.]*\).*/\2/p'
}
updated=
update() {
	[ -z "$updated" ] || return 0
	say "reading package lists"
	apt-get -q -q update || die "apt-get update: check the network and the machine's apt sources"
	updated=yes
}
install() {
	update
	say "installing $*"
	DEBIAN_FRONTEND=noninteractive apt-get -q -q -y --no-install-recommends install "$@" >/dev/null ||
		die "apt-get install $*: see above"
}

# backports adds the release's backports, from the archive that serves the
# release itself. Their packages are taken only where they are asked for.
backports() {
	archive=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		sed -n "s/ $VERSION_CODENAME main\$//p" | head -n 1)
	[ -n "$archive" ] || die "no Debian archive in apt's sources: install Go $oldest_go or newer by hand"
	say "adding $VERSION_CODENAME-backports, for Go"
	echo "deb $archive $VERSION_CODENAME-backports main" >/etc/apt/sources.list.d/vfbroker-backports.list
	updated=
	update
}

install_go() {
	update
	if at_least "$(candidate golang-go)" "$oldest_go"; then
		install golang-go
	else
		[ "$(apt-cache policy golang-go | grep -c -- "$VERSION_CODENAME-backports")" != 0 ] || backports
		install -t "$VERSION_CODENAME-backports" golang-go
	fi
	at_least "$(go_version)" "$oldest_go" || die "Go $oldest_go or newer is needed, found '$(go_version)': install it by hand"
}

[ "$(id -u)" = 0 ] || die "not root: run it as root"
[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || die "this is not Debian on amd64"
. /etc/os-release
case ${ID:-}:${VERSION_ID:-} in
debian:12 | debian:13) ;;
*) say "this is ${PRETTY_NAME:-an unknown system}, tried only on Debian 12 and 13" ;;
esac

missing=
for pair in mmdebstrap:mmdebstrap make:make git:git xz:xz-utils mount:mount lspci:pciutils; do
	command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
# shellcheck disable=SC2086 # a list of packages
[ -z "$missing" ] || install $missing
at_least "$(go_version)" "$oldest_go" || install_go
# Where Go's own archive puts it; for a script that reads this one with ".".
command -v go >/dev/null || export PATH="$PATH:/usr/local/go/bin"
