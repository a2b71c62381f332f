# build    build dist/eks-token, the executable, and dist/eks-token.exe, which is the same for Windows
# run      build, then print a token for a made-up cluster, with the example keys from the AWS documentation
# test     build, then run all tests; as root on a system with apt, this first installs what they need
# keyrings install KWallet and KeePassXC, as root on a system with apt; system-keyrings also runs their tests
# test-macos run the tests of the macOS Keychain's stand-in, with what is in PLATFORMS=DIR
# test-windows run the tests of Windows under Wine, with what is in PLATFORMS=DIR
# fuzz     run the cases of tests/test_fuzz.py for MINUTES, each time others
# mutate   change MUTANTS places of eks_token.py, one at a time, and print the changes that no test notices
# coverage run the tests, then print how much of eks_token.py they reach, branches and the executable's runs included
# lint     run ruff, mypy and shellcheck; make actionlint checks .github/workflows and needs Go
# bench    build, then measure how long answers take; BEFORE=FILE compares with another build
# release  build, then make what is published below dist/release; REPOSITORY=OWNER/NAME is where on GitHub, if not git's origin
# reproduce tell whether FILE is what these sources build
# install  build, then copy the executable to PREFIX/bin
# clean    remove everything that the other targets made here
#
# PYTHON is the interpreter for .venv, 3.11 or newer. PYTEST is extra arguments for pytest.

PYTHON ?= python3
PREFIX ?= $(HOME)/.local
PYTEST ?= -n auto
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

SOURCES := eks_token.py LICENSE pyproject.toml $(addprefix build/,__main__.py check.py launcher.sh package.py requirements.txt start.py tools.txt)
FLAGS := --quiet --disable-pip-version-check

# Debian packages, and a command that each provides, for the tests that use real keyrings and shells.
SYSTEM := gnome-keyring:gnome-keyring-daemon libsecret-tools:secret-tool dbus:dbus-daemon dash:dash bash:bash \
	busybox:busybox zsh:zsh mksh:mksh ksh93u+m:ksh93 yash:yash fish:fish shellcheck:shellcheck strace:strace ntfs-3g:lowntfs-3g

# The keyrings of other desktops. They bring in about 100 packages, so only their own target installs them.
KEYRINGS := libkf5wallet-bin:kwalletd5 keepassxc:keepassxc xvfb:Xvfb xdotool:xdotool libsecret-tools:secret-tool dbus:dbus-daemon

.PHONY: build run test keyrings system-keyrings test-macos test-windows fuzz mutate coverage lint actionlint bench release \
	reproduce publish install clean system
.DELETE_ON_ERROR:

build: dist/eks-token dist/eks-token.exe

dist/eks-token: $(SOURCES) .venv/build.done
	$(BIN)/python build/package.py $@

dist/eks-token.exe: dist/eks-token build/wrapper.py .venv/build.done
	$(BIN)/python build/wrapper.py

# The environment is cleared, because many variables change what AWS libraries do. The secret key belongs to nobody.
run: build
	@echo '$$ dist/eks-token --cluster-name sample --region us-east-2' >&2
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	env -i PATH="$$PATH" HOME="$$home" EKS_TOKEN_PYTHON="$(CURDIR)/$(BIN)/python" \
		AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE \
		AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY \
		dist/eks-token --cluster-name sample --region us-east-2

test: build .venv/dev.done system
	$(BIN)/pytest $(PYTEST)

keyrings: SYSTEM := $(KEYRINGS)
keyrings: system

system-keyrings: build .venv/dev.done keyrings
	EKS_TOKEN_SYSTEM_KEYRINGS=1 $(BIN)/pytest -n 2 tests/test_system_keyrings.py

# PLATFORMS is a directory with `macos-python`, which runs a file as on macOS, and its Keychain.
test-macos: build .venv/dev.done
	PLATFORMS="$(abspath $(PLATFORMS))" $(BIN)/pytest -rP tests/macos.py

# PLATFORMS is a directory with `windows-python`, which starts a Python file, or kubectl.exe, on Windows (under Wine).
test-windows: build .venv/dev.done
	PLATFORMS="$(abspath $(PLATFORMS))" $(BIN)/pytest -rP tests/windows.py

# It needs no build: the cases run in process.
fuzz: .venv/dev.done
	$(BIN)/python tests/test_fuzz.py --minutes $(or $(MINUTES),10)

mutate: build .venv/dev.done system
	$(BIN)/python tests/mutate.py --mutants $(or $(MUTANTS),20) --seed $(or $(SEED),1) $(SECTIONS)

# coverage's own start-up file measures pytest and its workers, tests/measured.py the executable. It fails if tests fail,
# or if too little is reached.
coverage: build .venv/dev.done system
	@rm -rf dist/coverage && mkdir -p dist/coverage
	COVERAGE_PROCESS_START="$(CURDIR)/pyproject.toml" COVERAGE_FILE="$(CURDIR)/dist/coverage/data" \
		$(BIN)/pytest $(PYTEST); status=$$?; \
	$(BIN)/python tests/measured.py report && exit $$status

lint: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 eks_token.py build
	@if command -v shellcheck >/dev/null; then shellcheck -s sh build/launcher.sh; \
	else echo "make: shellcheck is not installed; build/launcher.sh was not checked" >&2; fi

actionlint:
	go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

bench: build .venv/dev.done
	$(BIN)/python tests/bench.py $(if $(BEFORE),--before $(BEFORE))

# With TAG, it fails unless that is the tag of this version.
release: build
	$(BIN)/python build/release.py --repository "$(REPOSITORY)" --tag "$(TAG)"

reproduce: .venv/build.done
	@[ -n "$(FILE)" ] || { echo "make: which file? make reproduce FILE=PATH" >&2; exit 1; }
	@$(BIN)/python build/reproduce.py "$(FILE)"

# Called by .github/workflows/release.yml after make release. It needs GitHub's gh.
publish:
	cd dist/release && gh release create "$(TAG)" --verify-tag --title "$(TAG)" --notes-file NOTES.md \
		SHA256SUMS $$(cut -c 67- SHA256SUMS)

# Rename the file into place, because the old one may be in use. Not every shell expands the tilde of PREFIX=~/.local.
install: build
	@bin="$(subst ~/,$(HOME)/,$(PREFIX))/bin" && mkdir -p "$$bin" && \
	cp dist/eks-token "$$bin/.eks-token.new" && chmod 755 "$$bin/.eks-token.new" && \
	mv -f "$$bin/.eks-token.new" "$$bin/eks-token" && echo "$$bin/eks-token"

clean:
	rm -rf .venv dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "make: $(PYTHON) is not Python 3.11 or newer; choose another: make PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# The build does not need the project's own dependencies, which are large.
.venv/build.done: build/tools.txt | .venv/pyvenv.cfg
	$(BIN)/pip install $(FLAGS) --require-hashes --only-binary :all: --requirement build/tools.txt
	@touch $@

.venv/dev.done: pyproject.toml .venv/build.done | .venv/pyvenv.cfg
	$(BIN)/pip install $(FLAGS) --editable '.[dev]'
	@touch $@

system:
	@missing=; for each in $(SYSTEM); do \
		command -v "$${each#*:}" >/dev/null || missing="$$missing $${each%%:*}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "make: installing$$missing"; log=$$(mktemp); \
		{ apt-get -qq update && \
			DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing; \
		} >"$$log" 2>&1 || { tail -n 5 "$$log"; echo "make: that failed; tests that need these packages are skipped"; } >&2; \
		rm -f "$$log"; \
	else echo "make: these packages are missing, and the tests that need them are skipped:$$missing" >&2; fi
