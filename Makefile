# Cairn. `make help` lists the targets; README.md explains the first two.
SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN      := bin
ALL_IMAGES := mover,mover-debian,appliance
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X github.com/cairn-backup/cairn/internal/version.Version=$(VERSION)

# Tools, at the versions they were tried at; fetched by `go run`, not part of go.mod.
GOTESTSUM   := gotest.tools/gotestsum@v1.13.0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOFUMPT     := mvdan.cc/gofumpt@v0.9.2

.PHONY: demo test ci deps build check fmt vet lint generate drift unit lab race soak reliability fuzz bench bench-go bench-kvm cover images images-test container container-test man load clean help

demo: deps build ## Back up and restore a small real VM on this machine; DEMO=once tears all down again
	@scripts/demo.sh

test: deps build check drift lab ## Install what is missing and run every test, those on real libvirt included

deps: ## Install the Debian packages that are missing
	@scripts/install-deps.sh

build: ## Build the programs into bin/
	@mkdir -p $(BIN)
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/cairnd ./cmd/cairn ./cmd/cairn-lab
	CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/cairn-mover

check: fmt vet lint ## Formatting, vet, staticcheck

fmt: ## Fail if a file is not gofmt'ed
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "not formatted: $$out"; exit 1; }

vet: ## go vet, also with the build tags
	go vet ./...
	go vet -tags faultpoints ./internal/... ./appliance/... ./store/... ./datamover/... ./hypervisors/...
	PKG_CONFIG=/bin/false go build -tags libvirt_dlopen -o /dev/null ./cmd/cairnd

lint: ## staticcheck
	go run $(STATICCHECK) ./...

generate: ## Write the API's server and client again from api/openapi.yaml
	go generate ./...

drift: generate ## Fail if the generated files are not those of api/openapi.yaml and api/mover/*.proto
	@git diff --exit-code --stat -- api || { echo "api/: run 'make generate' and commit"; exit 1; }

unit: ## Tests that need neither root nor libvirt
	go run $(GOTESTSUM) --format pkgname-and-test-fails -- -timeout 20m ./...

lab: ## All tests, with real libvirt and QEMU
	go test -tags faultpoints ./internal/fault ./datamover/transfer
	CAIRN_LAB=1 go run $(GOTESTSUM) --format pkgname-and-test-fails -- -count=1 -timeout 60m ./...

race: ## Unit tests under the race detector, campaigns in small counts: half an hour
	go test -race -short -timeout 60m ./internal/... ./store/... ./datamover/... ./appliance/... ./cmd/...

soak: ## Every campaign of the repository in large counts, and its tests under the race detector: hours
	set -o pipefail; CAIRN_LAB=1 CAIRN_SOAK=1 go test -count=1 -timeout 48h -v -run '^TestCampaign|^TestCrash' ./internal/boundary ./store/... | grep -E 'campaign: |seed|states|^(---|FAIL|ok)'
	CAIRN_LAB=1 go test -race -count=1 -timeout 12h ./store/...

reliability: ## Run every campaign against the repository and write docs/reliability.md's table
	@scripts/reliability.sh

fuzz: ## Every fuzz target for 30 seconds, or longer until something is tried
	@scripts/fuzz.sh 30

bench: build ## Cairn beside restic, kopia and borg on images of machines; SMALL=1 takes minutes, SEED=n other images
	@scripts/install-deps.sh --bench
	@scripts/bench.sh

bench-go: ## Go benchmarks of the repository and the mover
	go test -run XXX -bench . -benchmem ./store/... ./datamover/...

bench-kvm: deps build ## Full, re-read and 1 % incremental of the demo VM beside nbdcopy and virtnbdbackup
	@scripts/install-deps.sh --bench
	@scripts/bench-kvm.sh

cover: ## Coverage of the unit tests
	go test -coverprofile=cover.out ./internal/... ./store/... ./datamover/... ./appliance/... && go tool cover -func=cover.out | tail -1

images: deps ## The mover's and the appliance's images into dist/images; IMAGES=mover makes the small mover only
	@scripts/install-deps.sh --images
	go run ./images/build -out dist/images -only $(or $(IMAGES),$(ALL_IMAGES))

images-test: images ## Start machines from all images of `make images`, without KVM, and build each again: an hour or two
	CAIRN_LAB=1 CAIRN_SOAK=1 CAIRN_IMAGES=dist/images go test -count=1 -timeout 6h -v -skip '^TestContainer$$' ./images/...
	CAIRN_LAB=1 CAIRN_SOAK=1 CAIRN_IMAGES=dist/images go test -count=1 -timeout 1h -v -run 'TestMoverVM(WithStorage|Dies)|TestOVirtSANFromMoverVM' ./lab/e2e

container: deps ## The appliance as a container image into dist/container, for docker-compose.yml
	go run ./images/build -out dist/container -only container

container-test: container ## Run the container as docker-compose.yml says, without an engine, and build it again: ten minutes
	CAIRN_LAB=1 CAIRN_SOAK=1 CAIRN_IMAGES=$(CURDIR)/dist/container go test -count=1 -timeout 1h -v -run 'Container|Compose' ./images/build

man: ## The manual pages of the command line into dist/man/man1
	go run ./cmd/cairn man dist/man/man1

load: ## Measure the API over 10,000 VMs and 1,000,000 restore points, and 100 followers of its events: half an hour, 3 GB in LOAD
	go build -o $(BIN)/ ./cmd/cairn-lab
	$(BIN)/cairn-lab load $(or $(LOAD),/var/tmp/cairn-load)

clean: ## Remove what was built
	rm -rf $(BIN) dist cover.out

help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14
