#!/usr/bin/env bash
# What the Makefile's targets run. It installs what is missing, builds, and runs
# the unit tests here and everything that needs a kernel on the emulated host.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CGO_ENABLED=0
# Root may build a checkout that is another user's.
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=$PWD
export PATH=$PWD/bin:$PATH
logs=out/test
mkdir -p $logs
rm -f $logs/*.result

step() { printf '\n== %s (%s s)\n' "$*" "$SECONDS" >&2; }

setup() {
	step "setting up"
	. test/setup/host.sh
	go build -trimpath -o bin/ ./cmd/...
}

# The test binary of a package for the emulated host, or for one under Xen (labxen).
lab_binary() { # package [tag]
	mkdir -p bin/lab
	go test -c -tags "${2:-lab}" -o "bin/lab/$(basename "$1")${2:+-xen}.test" "./$1"
}

# Counts the results in a log of `go test -v`, top-level tests and subtests alike.
count() { # PASS|FAIL|SKIP file
	grep -cE "^ *--- $1:" "$2" || true
}

# level NAME STATUS: notes a level's results, from its log, for the closing table.
level() {
	local log=$logs/$1.log p f s
	p=$(count PASS "$log") f=$(count FAIL "$log") s=$(count SKIP "$log")
	# A test binary that dies counts as a failure, and so does one that ran nothing, or a skip where nothing may be missing.
	if [ "$2" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
	if [ "$p" -eq 0 ]; then f=$((f + 1)); fi
	# Several suites may share a log; of unit tests some packages have none that is wanted here.
	case $1 in unit) ;; *) if grep -q '^testing: warning: no tests to run' "$log"; then f=$((f + 1)); fi ;; esac
	case $1 in unit) ;; *) f=$((f + s)) ;; esac
	echo "$1 $p $f $s $((SECONDS - began))" >"$logs/$1.result"
	if [ "$f" -ne 0 ]; then
		printf '%s: failures, from %s:\n' "$1" "$log" >&2
		grep -nE -B 12 -A 3 '^ *--- (FAIL|SKIP):|^panic:|^FAIL' "$log" | tail -n 80 >&2 || tail -n 40 "$log" >&2
	fi
}

unit() {
	step "unit tests"
	local began=$SECONDS status=0 dirty
	dirty=$({ git ls-files '*.go' 2>/dev/null || true; } | xargs -r gofmt -l) # outside a checkout there is nothing to list
	if [ -n "$dirty" ]; then
		printf 'gofmt: %s\n' "$dirty" >&2
		status=1
	fi
	{ go vet ./... && go vet -tags lab,labhost ./... && go vet -tags labxen ./... && go test -v -timeout 180s ./...; } >$logs/unit.log 2>&1 || status=1
	level unit $status
}

# lab_level NAME PACKAGE [vflab options]: a package's tests on the emulated host.
lab_level() {
	local name=$1 package=$2 began=$SECONDS status=0
	shift 2
	step "$name, on the emulated host"
	vflab run --timeout 12m --out out "$@" -- sh -c "cd $package && exec $PWD/bin/lab/$(basename "$package").test -test.v -test.timeout 11m" >"$logs/$name.log" 2>&1 || status=$?
	level "$name" $status
}

emulated_host() { # the emulated host's own guarantees: clean-up, exit status, reset
	local began=$SECONDS status=0
	step "the emulated host itself"
	go test -v -p 1 -tags labhost -run '^TestHost' -timeout 1200s ./test/lab ./cmd/vflab >$logs/vflab.log 2>&1 || status=$?
	level vflab $status
}

# xen_level NAME SCRIPT [vflab options]: a script's tests in dom0 of the emulated host under Xen.
xen_level() {
	local name=$1 script=$2 began=$SECONDS status=0
	shift 2
	step "$name, on the emulated host"
	vflab run --hypervisor xen --clock deterministic --timeout 15m --out out "$@" -- sh -c "$script" >"$logs/$name.log" 2>&1 || status=$?
	level "$name" $status
}

# What runs in dom0: the suites of what the broker stands on; then leases, by the command line and again and again.
xen_suites() { # [netfront]: with the bench's guest on a bridge, for which make test has no time
	local lab=$PWD/bin/lab netfront=""
	[ $# -eq 0 ] || netfront="(cd bench/guest && exec $lab/guest-xen.test $flags '^TestDomainOnBridge') || status=1"
	xen_level xen-suites "status=0
		(cd test/hostsuite && exec $lab/hostsuite-xen.test $flags '^TestDom0') || status=1
		(cd test/hvsuite && exec $lab/hvsuite-xen.test $flags '^TestXen\$') || status=1
		(cd guestshim && exec $lab/guestshim-xen.test $flags '^TestLabXenstore') || status=1
		$netfront
		exit \$status"
}
xen_leases() {
	local lab=$PWD/bin/lab
	xen_level xen-leases "status=0
		(cd test/e2e && exec $lab/e2e.test $flags '^TestLab\$') || status=1
		(cd test/soak && SOAK_CYCLES=2 SOAK_KILLS=1 exec $lab/soak.test $flags '^TestSoak\$') || status=1
		exit \$status"
}
xen_no_iommu() {
	xen_level xen-no-iommu "cd test/e2e && exec $PWD/bin/lab/e2e.test $flags '^TestLab\$'" --iommu none
}
flags="-test.v -test.timeout 10m -test.run"

# two_at_a_time JOB...: runs commands. An emulated host takes one CPU, most of the time.
two_at_a_time() {
	local job running=0
	for job in "$@"; do
		if [ $running -eq 2 ]; then
			wait -n || true # what failed is in its level's result
			running=1
		fi
		eval "$job" &
		running=$((running + 1))
	done
	wait
}

xen_packages="test/hostsuite test/hvsuite guestshim bench/guest"
lab_packages="test/hostsuite sriov test/hvsuite guestshim test/e2e bench/hostcpu bench/guest test/soak"

# failures NAME: a failed level's tests, and the last that each said.
failures() {
	awk -v name="$1" -v most=10 '
		/^ *--- (FAIL|SKIP):/ { order[++n] = $3; next }
		/^=== / { now = $3; next }
		/^ *--- / { now = ""; next }
		/^panic: / { print name ": " $0 }
		now != "" { said[now, count[now]++ % most] = "  " substr($0, 1, 300) }
		END {
			if (!n) exit 1 # it failed for another reason
			for (i = 1; i <= n; i++) {
				test = order[i]
				if (!count[test]) continue # a part of it has failed
				print name ": " test
				for (j = count[test] > most ? count[test] - most : 0; j < count[test]; j++) print said[test, j % most]
			}
		}' "$logs/$1.log" || tail -n 10 "$logs/$1.log" | sed "s/^/$1: /"
}

finish() {
	local passed=0 failed=0 skipped=0 broken="" name p f s took
	step "done"
	for name in "$@"; do
		p=0 f=1 s=0 took=0 # a level without a result did not run
		[ ! -e "$logs/$name.result" ] || read -r _ p f s took <"$logs/$name.result"
		printf '%-14s %5d passed %4d failed %4d skipped  %4d s\n' "$name" "$p" "$f" "$s" "$took"
		[ "$f" -eq 0 ] || broken="$broken $name"
		passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	done
	for name in $broken; do
		[ ! -e "$logs/$name.log" ] || failures "$name" | sed -n 1,40p
	done
	printf '%d passed, %d failed, %d skipped\n' $passed $failed $skipped
	[ $skipped -eq 0 ] || echo "skipped tests are not passed ones: this host was set up for all of them" >&2
	[ $((failed + skipped)) -eq 0 ]
}

# hypervisor sets the options of the host that HYPERVISOR names, kvm or xen.
hypervisor() {
	case ${HYPERVISOR:=kvm} in
	kvm) host="--kernel backports" ;;
	xen) host="--hypervisor xen" ;;
	*)
		echo "HYPERVISOR=$HYPERVISOR is neither kvm nor xen" >&2
		exit 2
		;;
	esac
}

case ${1:-} in
check)
	setup
	unit
	finish unit
	;;
unit)
	unit
	finish unit
	;;
test)
	setup
	unit
	vflab image
	for package in $lab_packages; do lab_binary "$package"; done
	for package in $xen_packages; do lab_binary "$package" labxen; done
	# Xen's first, so that they have the machine, and the longest of the others before the short ones.
	two_at_a_time xen_suites xen_leases xen_no_iommu emulated_host "lab_level command-line test/e2e" "lab_level hypervisor test/hvsuite" \
		"lab_level soak test/soak --kernel backports --clock deterministic" "lab_level shim guestshim" "lab_level kernel test/hostsuite" \
		"lab_level guest bench/guest --kernel backports --clock deterministic" "lab_level no-iommu test/e2e --iommu none" \
		"lab_level netlink sriov" "lab_level hostcpu bench/hostcpu"
	finish unit vflab kernel netlink hypervisor shim command-line no-iommu hostcpu guest soak xen-suites xen-leases xen-no-iommu
	;;
xen)
	setup
	vflab image
	for package in $xen_packages; do lab_binary "$package" labxen; done
	for package in test/e2e test/soak; do lab_binary "$package"; done
	two_at_a_time "xen_suites netfront" xen_leases xen_no_iommu
	finish xen-suites xen-leases xen-no-iommu
	;;
demo)
	setup
	mkdir -p out
	hypervisor
	step "the emulated host, $HYPERVISOR"
	# shellcheck disable=SC2086 # words
	exec vflab run $host --clock deterministic --timeout 15m --out out -- sh test/setup/demo.sh
	;;
soak)
	setup
	mkdir -p out
	lab_binary test/soak
	hypervisor
	case $HYPERVISOR in kvm) CYCLES=${CYCLES:-50} ;; xen) CYCLES=${CYCLES:-20} ;; esac
	# shellcheck disable=SC2086 # words
	exec vflab run $host --clock deterministic --timeout 25m --out out --env SOAK_CYCLES="$CYCLES" -- \
		sh -c "cd test/soak && exec $PWD/bin/lab/soak.test -test.v -test.timeout 24m"
	;;
chaos)
	setup
	mkdir -p out
	vflab image
	lab_binary test/chaos
	# CHAOS_SEED, which the test prints, makes the same choices again.
	export CHAOS_KILLS="${KILLS:-180}" CHAOS_GUEST_KILLS="${GUEST_KILLS:-20}" CHAOS_REBINDS="${REBINDS:-1000}" CHAOS_CUTS="${CUTS:-2}"
	exec go test -v -count 1 -tags labhost -run '^TestHostChaos$' -timeout 70m ./test/chaos
	;;
bench)
	setup
	mkdir -p out
	exec go run ./test/peerbench -out out/bench.json
	;;
sim)
	setup
	mkdir -p out
	exec go test -v -timeout 900s ./test/sim -seeds "${SEEDS:-10000}" -deep -mutants -out "$PWD/out/sim.json"
	;;
fuzz)
	setup
	for package in $(go list ./...); do
		for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
			step "$package $target"
			go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" "$package"
		done
	done
	;;
*)
	echo "usage: $0 test|unit|check|xen|demo|soak|chaos|bench|sim|fuzz" >&2
	exit 2
	;;
esac
