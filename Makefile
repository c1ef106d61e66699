# Each target is one command that works without make too. demo, test, xen, soak, chaos, sim, bench, fuzz
# and check install what they need on a fresh Debian 12 or 13 and want root; the others need Go.
export CGO_ENABLED = 0

.PHONY: demo test unit xen sim soak chaos bench fuzz gen build check clean

demo: ; test/setup/run.sh demo
test: ; test/setup/run.sh test
unit: ; test/setup/run.sh unit
xen: ; test/setup/run.sh xen
sim: ; test/setup/run.sh sim
soak: ; test/setup/run.sh soak
chaos: ; test/setup/run.sh chaos
bench: ; test/setup/run.sh bench
fuzz: ; test/setup/run.sh fuzz
gen: ; go generate ./...
build: ; go build -trimpath -o bin/ ./cmd/...
check: ; test/setup/run.sh check
clean: ; rm -rf bin out
