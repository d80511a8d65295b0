# Two commands matter: `make demo` shows Segue at work, `make test` proves it. Both install what they need first.
.DEFAULT_GOAL := help
.PHONY: help setup demo test soak bench fmt lint

help: ## what can be made here
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what the tests need and is missing
	@scripts/setup

demo: ## move a live shop between two throw-away servers, under load, and report
	@scripts/setup --minimal
	cargo run --release -p segue -- demo

test: setup ## every rule: format, lints, docs, tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps
	cargo nextest run --workspace --all-features

soak: setup ## the same tests with the long campaigns at full length
	SEGUE_SOAK=1 cargo nextest run --workspace --all-features --profile soak

bench: ## the figures of docs/benchmarks.md, measured here
	@scripts/setup --bench
	cargo xtask bench

fmt: ## format the sources
	cargo fmt --all

lint: ## lints only
	cargo clippy --workspace --all-targets --all-features -- -D warnings
