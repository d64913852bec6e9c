# make help lists the targets.
SHELL   := /bin/sh
GO      ?= go
PREFIX  ?= /usr/local
UNITDIR ?= $(PREFIX)/lib/systemd/system
MANDIR  ?= $(PREFIX)/share/man
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
PACKAGE := github.com/vhdrelay/vhdrelay
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
export CGO_ENABLED := 0
export PATH := $(CURDIR)/.tools/node_modules/.bin:$(PATH)

.PHONY: help build docs tools test race lint demo bench chart acceptance guesttest powercut bootdrill fuzz torture mutants install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: ## bin/vhdrelay, one static binary
	$(GO) build -trimpath -ldflags "-s -w -X $(PACKAGE)/appliance.Version=$(VERSION)" -o bin/vhdrelay ./appliance/cmd/vhdrelay

tools: ## what tests and demo need beyond Go
	@appliance/e2e/tools.sh

test: tools build ## the tests; at most 20 minutes on two cores
	$(GO) test -count=1 -timeout 20m ./...
	@$(MAKE) --no-print-directory fuzz FUZZDIRS=fs/image FUZZTIME=3s

race: tools ## the tests of the concurrent packages under the race detector
	CGO_ENABLED=1 $(GO) test -race -short -count=1 -timeout 30m ./fs/... ./journal/... ./resync/... ./shipper/... ./appliance/...

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l fs journal shipper resync appliance systemd)" || { gofmt -d fs journal shipper resync appliance systemd; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

demo: tools build ## the main job end to end: replicate, crash, lose the host, bring the VM back
	@$(GO) run ./appliance/e2e/demo

bench: tools build ## the figures of the README, as ratios measured in one run
	@$(GO) run ./appliance/e2e/bench

chart: build ## draws a guest's write latency across a kill and an upgrade, for the README
	@$(GO) run ./appliance/e2e/bench -chart appliance/e2e/bench/latency.svg

acceptance: tools build ## the long runs; resumable
	@$(GO) run ./appliance/e2e/acceptance

torture: ## random histories with faults for DURATION (10m) from SEED (1) on; resumable
	@$(GO) run ./appliance/e2e/torture -seed $(or $(SEED),1) -duration $(or $(DURATION),10m)

FUZZDIRS ?= fs journal shipper resync appliance
FUZZERS = grep -r --include='*_test.go' -o '^func Fuzz[A-Za-z0-9]*' $(FUZZDIRS) | sort

# When the time of a fuzzer is over, Go before 1.27 takes its own deadline for a failure now and then (go.dev/issue/75804), without
# an input that fails: that is no verdict, and the fuzzer runs once more.
fuzz: ## every fuzzer below FUZZDIRS (all) for FUZZTIME (10s)
	@set -e; said=$$(mktemp); trap 'rm -f "$$said"' EXIT; \
	one() { $(GO) test -run '^$$' -fuzz "^$$2\$$" -fuzztime $(or $(FUZZTIME),10s) -fuzzminimizetime 10x "./$$1" > "$$said" 2>&1; }; \
	undecided() { grep -q '^    context deadline exceeded$$' "$$said" && ! grep -q 'Failing input' "$$said"; }; \
	$(FUZZERS) | sed 's|/[^/]*:func | |' | while read -r dir name; do echo "$$dir $$name"; \
		if ! one $$dir $$name && undecided; then cat "$$said"; echo "$$name: once more (go.dev/issue/75804)"; one $$dir $$name || true; fi; \
		cat "$$said"; grep -q '^ok' "$$said"; done

mutants: tools ## breaks rules of the data path, one at a time, and expects a test to notice; resumable
	@$(GO) run ./appliance/e2e/mutants

docs: ## man page and shell completions, from the commands themselves, into bin/share
	$(GO) run -ldflags "-X $(PACKAGE)/appliance.Version=$(VERSION)" ./appliance/cli/docs bin/share

guesttest: tools build ## the unit under a booted Debian 12 in qemu; minutes
	@$(GO) run ./appliance/e2e/guesttest $(ARGS)

powercut: tools build ## 20 power cuts of such a guest under load; resumable
	@$(GO) run ./appliance/e2e/powercut $(ARGS)

bootdrill: tools build ## guests on disks in the mount, the host lost, the newest point booted; minutes, resumable
	@$(GO) run ./appliance/e2e/bootdrill $(ARGS)

BASH_COMPLETION := $(PREFIX)/share/bash-completion/completions/vhdrelay
ZSH_COMPLETION  := $(PREFIX)/share/zsh/site-functions/_vhdrelay
FISH_COMPLETION := $(PREFIX)/share/fish/vendor_completions.d/vhdrelay.fish

install: build docs ## binary, unit, man page and completions below $(DESTDIR)$(PREFIX)
	install -D -m 0755 bin/vhdrelay $(DESTDIR)$(PREFIX)/bin/vhdrelay
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' systemd/vhdrelay.service > $(DESTDIR)$(UNITDIR)/vhdrelay.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/vhdrelay.service
	install -D -m 0644 bin/share/vhdrelay.8 $(DESTDIR)$(MANDIR)/man8/vhdrelay.8
	install -D -m 0644 bin/share/vhdrelay.bash $(DESTDIR)$(BASH_COMPLETION)
	install -D -m 0644 bin/share/vhdrelay.zsh $(DESTDIR)$(ZSH_COMPLETION)
	install -D -m 0644 bin/share/vhdrelay.fish $(DESTDIR)$(FISH_COMPLETION)
	@test -e $(DESTDIR)/etc/vhdrelay/vhdrelay.yaml || install -D -m 0600 systemd/vhdrelay.yaml $(DESTDIR)/etc/vhdrelay/vhdrelay.yaml

uninstall: ## removes what install put there; the config and the state stay
	rm -f $(DESTDIR)$(PREFIX)/bin/vhdrelay $(DESTDIR)$(UNITDIR)/vhdrelay.service $(DESTDIR)$(MANDIR)/man8/vhdrelay.8 \
		$(DESTDIR)$(BASH_COMPLETION) $(DESTDIR)$(ZSH_COMPLETION) $(DESTDIR)$(FISH_COMPLETION)

clean: ## what was built
	rm -rf bin
