# make demo        the product in one terminal; Ctrl-C ends it
# make test        installs what the tests need, then runs them all
# make test-long   the long forms
# make test-cluster  nodes, load balancers, queue and database, while parts of them stop
# make test-system  packages on a Debian with systemd: installed, killed, upgraded, purged
# make test-arm    the programs for arm64 and armhf, in an emulator
# make fuzz        every decoder is fed with anything, FUZZTIME each
# make check      make test, gosec and govulncheck, and the gateway for Windows
# make windows    the gateway for Windows, built, and run by wine where that is
# make bench       the yardstick: gateway and cloud under load, beside a peer
# make bench-cloud what a node of the cloud records, and what a gateway costs it
# make build       bin/touchline, bin/touchline-cloud
# make dist        packages for Debian and RPM systems, programs, SBOMs, SHA256SUMS
# make release     make dist, checked, and what a signature of it would cover

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
GO ?= go
FUZZTIME ?= 30s

# What needs no C is vetted for macOS; of the rest no binary is claimed there.
portable := . ./archive ./clock ./config ./credential ./identity ./installer ./payload ./preflight ./sensors ./simulator ./systemd ./wire

.PHONY: build demo test test-long test-cluster test-system test-arm fuzz check static security bench bench-cloud microbench windows dist release clean

build:
	@.ci/setup build
	@mkdir -p bin
	$(GO) build -o bin/ ./cmd/touchline ./cmd/touchline-cloud

demo:
	@.ci/setup build
	@mkdir -p bin
	@echo "building (the first time takes a minute or two: SQLite is compiled)"
	@$(GO) build -o bin/ ./cmd/touchline ./cmd/touchline-cloud ./cmd/demo
	@exec bin/demo

# Tests run under the race detector; the programs that end-to-end tests start
# are built without it.
test: static
	@.ci/setup test
	@$(GO) test -race -json -timeout 19m ./... | $(GO) run ./internal/testreport

test-long: static
	@.ci/setup long
	@TOUCHLINE_TEST_LONG=1 $(GO) test -json -count=1 -timeout 180m ./... | $(GO) run ./internal/testreport
	@$(GO) run ./internal/fuzzall -for 5s

# 500 gateways, and everything that they need a process of its own: some
# twenty minutes. TOUCHLINE_CLUSTER_SEED repeats who is hit, TOUCHLINE_CLUSTER_EVENTS is another
# plan, such as kill,add,database (e2e/cluster_test.go has the names).
test-cluster:
	@.ci/setup test
	@TOUCHLINE_TEST_LONG=1 $(GO) test -v -count=1 -timeout 90m -run '^TestCluster_' ./e2e

# A Debian in a container, as root: some ten minutes.
test-system:
	@.ci/setup system
	@.ci/system
	@TOUCHLINE_TEST_SYSTEM=$(CURDIR)/bin/system $(GO) test -v -count=1 -timeout 60m -run '^TestSystem_' ./e2e

# The cross compilers take minutes the first time. What takes the bytes of others is
# tested with an int of 32 bits first.
test-arm:
	@.ci/setup arm
	@if [ "$$($(GO) env GOHOSTARCH)" = amd64 ]; then GOARCH=386 CGO_ENABLED=0 $(GO) test . ./config ./payload ./wire; else echo "make: SKIPPED decoders with an int of 32 bits: they need amd64"; fi
	@ARCHS="arm64 armhf" packages/build bin/arm
	@TOUCHLINE_TEST_ARM=$(CURDIR)/bin/arm $(GO) test -v -count=1 -timeout 60m -run '^TestArm_' ./e2e

# Without fuzzing, make test runs the inputs that are committed. What is found
# is written to testdata/fuzz.
fuzz:
	@.ci/setup build
	@$(GO) run ./internal/fuzzall -for $(FUZZTIME)

check: test security windows

# The gateway for Windows, with Debian's cross compiler: SQLite needs C. It is run
# where wine is; that says so where it is not.
windows:
	@.ci/setup windows
	@mkdir -p bin
	@GOOS=windows CGO_ENABLED=1 CC=x86_64-w64-mingw32-gcc $(GO) vet ./cmd/touchline
	@GOOS=windows CGO_ENABLED=1 CC=x86_64-w64-mingw32-gcc $(GO) build -o bin/touchline.exe ./cmd/touchline
	@TOUCHLINE_TEST_WINDOWS=$(CURDIR)/bin/touchline.exe $(GO) test -v -count=1 -timeout 20m -run '^TestWindows_' ./e2e

# The tools are built the first time, which takes some minutes.
security:
	@.ci/setup build
	@.ci/security

static:
	@.ci/setup build
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt would change: $$unformatted"; exit 1; fi
	@$(GO) vet ./...
	@$(GO) tool staticcheck ./...
	@GOOS=darwin CGO_ENABLED=0 $(GO) vet $(portable)
	@GOOS=windows CGO_ENABLED=0 $(GO) vet . ./config ./identity ./installer ./internal/filelock ./internal/folder ./systemd ./wire

bench: build
	@.ci/setup test
	@$(GO) build -o bin/bench ./bench
	@exec bin/bench

# The idle gateways take ten minutes: they are measured at rest.
bench-cloud: build
	@.ci/setup test
	@$(GO) build -o bin/bench ./bench
	@exec bin/bench cloud

microbench:
	@$(GO) test -run '^$$' -bench . -benchmem ./...

dist:
	@.ci/setup dist
	@packages/build dist

release:
	@.ci/setup dist
	@packages/release dist

clean:
	rm -rf bin dist
