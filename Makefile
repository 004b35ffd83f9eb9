# SPDX-License-Identifier: MIT
# make demo | check | bench | bench-control | bench-proxy | bench-switch | man | requirements
# make install DESTDIR= PREFIX= | install-venv VENV= | sdist | sbom | rpm | deb

PREFIX     ?= /usr
DESTDIR    ?=
# The distribution's Python: the one whose site directory the installed package goes to.
PYTHON     ?= /usr/bin/python3
BINDIR      = $(PREFIX)/bin
LIBEXECDIR  = $(PREFIX)/libexec
UNITDIR     = $(PREFIX)/lib/systemd/system
DATADIR     = $(PREFIX)/share
SYSCONFDIR ?= /etc
# Neither bus daemon reads policies below /usr/local.
POLICYDIR   = $(if $(filter /usr,$(PREFIX)),$(DATADIR),$(SYSCONFDIR))/dbus-1/system.d
DOCDIR      = $(DATADIR)/doc/llmuxd
CATALOGDIR  = $(PREFIX)/lib/systemd/catalog
PRESETDIR   = $(PREFIX)/lib/systemd/system-preset

UNITS = llmuxd.service llmuxd.socket llmux-model@.service \
	llmux-gpus.service llmux-gpus.socket
FILL  = sed -e 's|@bindir@|$(BINDIR)|g' -e 's|@libexecdir@|$(LIBEXECDIR)|g' \
	-e 's|@python@|$(PYTHON)|g' -e 's|@docdir@|$(DOCDIR)|g'

# Where the package is, or will be, for that Python.
PACKAGES = $(shell $(PYTHON) packaging/install_python.py --prefix=$(PREFIX) --where)

.PHONY: all
all:
	@if command -v go-md2man > /dev/null; then $(MAKE) --no-print-directory man; fi
	@echo "make         the manual pages, where go-md2man is there; else the kept ones stay"
	@echo "make demo    boots a throw-away machine with two models on 127.0.0.1:4000"
	@echo "make check   lint, types and all tests"
	@echo "make bench   the benchmarks, as tables with ratios"
	@echo "make install DESTDIR= PREFIX=/usr"
	@echo "make install-venv VENV=/opt/llmuxd"
	@echo "make sdist   dist/*.tar.gz, the same bytes from the same sources"
	@echo "make sbom    packaging/llmuxd.cdx.json, what install-venv consists of"
	@echo "make rpm     dist/*.rpm, by rpmbuild"
	@echo "make deb     dist/*.deb, by dpkg-deb"

# The manual pages, from Markdown by go-md2man. What it makes is kept beside it, so that an
# installation needs no go-md2man; `make check` holds the two together.
.PHONY: man
man:
	for page in packaging/man/*.md; do \
		go-md2man -in "$$page" -out "$${page%.md}" || exit 1; \
	done

# What a package's %install calls.
.PHONY: install
install: install-python install-files

.PHONY: install-python
install-python:
	$(PYTHON) packaging/install_python.py --prefix=$(PREFIX) --root=$(DESTDIR)/

.PHONY: install-files
install-files:
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(LIBEXECDIR)/llmux $(DESTDIR)$(SYSCONFDIR)/llmux
	for unit in $(UNITS); do \
		$(FILL) systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit && \
		chmod 644 $(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done
	$(FILL) -e 's|@packages@|$(PACKAGES)|' packaging/llmux-model.in \
		> $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-model
	chmod 755 $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-model
	$(FILL) packaging/llmux-clean-up.in > $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-clean-up
	chmod 755 $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-clean-up
	$(FILL) packaging/llmux-erase.in > $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-erase
	chmod 755 $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-erase
	$(FILL) packaging/llmux-gpus.in > $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-gpus
	chmod 755 $(DESTDIR)$(LIBEXECDIR)/llmux/llmux-gpus
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(LIBEXECDIR)/llmux/bin
	$(FILL) -e 's|@packages@|$(PACKAGES)|' packaging/llmux-cuda-checkpoint.in \
		> $(DESTDIR)$(BINDIR)/llmux-cuda-checkpoint
	chmod 755 $(DESTDIR)$(BINDIR)/llmux-cuda-checkpoint
	ln -sfr $(DESTDIR)$(BINDIR)/llmux-cuda-checkpoint \
		$(DESTDIR)$(LIBEXECDIR)/llmux/bin/cuda-checkpoint
	install -D -m 644 dbus/org.llmux.conf $(DESTDIR)$(POLICYDIR)/org.llmux.conf
	install -D -m 644 dbus/org.llmux.service \
		$(DESTDIR)$(DATADIR)/dbus-1/system-services/org.llmux.service
	install -D -m 644 dbus/org.llmux.policy \
		$(DESTDIR)$(DATADIR)/polkit-1/actions/org.llmux.policy
	install -D -m 644 -t $(DESTDIR)$(DATADIR)/dbus-1/interfaces dbus/*.xml
	for section in 1 5 8; do \
		install -D -m 644 -t $(DESTDIR)$(DATADIR)/man/man$$section packaging/man/*.$$section \
			|| exit 1; \
	done
	install -D -m 644 packaging/completions/llmuxctl.bash \
		$(DESTDIR)$(DATADIR)/bash-completion/completions/llmuxctl
	install -D -m 644 packaging/completions/llmuxctl.zsh \
		$(DESTDIR)$(DATADIR)/zsh/site-functions/_llmuxctl
	install -D -m 644 packaging/completions/llmuxctl.fish \
		$(DESTDIR)$(DATADIR)/fish/vendor_completions.d/llmuxctl.fish
	install -D -m 644 packaging/90-llmuxd.preset $(DESTDIR)$(PRESETDIR)/90-llmuxd.preset
	install -D -m 644 packaging/llmux.catalog $(DESTDIR)$(CATALOGDIR)/llmux.catalog
	install -D -m 644 README.md $(DESTDIR)$(DOCDIR)/README.md
	install -D -m 644 llmuxd/model/network.nft $(DESTDIR)$(DATADIR)/llmuxd/network.nft
	install -D -m 644 packaging/grafana/llmuxd.json $(DESTDIR)$(DATADIR)/llmuxd/grafana.json
	install -D -m 644 LICENSE $(DESTDIR)$(DATADIR)/licenses/llmuxd/LICENSE
	test -e $(DESTDIR)$(SYSCONFDIR)/llmux/llmux.yaml || \
		install -m 644 packaging/llmux.yaml $(DESTDIR)$(SYSCONFDIR)/llmux/llmux.yaml

# Where the distribution's Python or its packages are too old: all of the Python in VENV, each file
# held against its hash in packaging/*requirements.txt. pystemd is compiled: gcc, pkg-config, and the
# headers of Python and libsystemd.
VENV ?= /opt/llmuxd
.PHONY: install-venv
install-venv:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip --quiet install --require-hashes -r packaging/build-requirements.txt
	# No isolation: that would fetch build tools that nobody holds against anything.
	$(VENV)/bin/pip --quiet install --no-build-isolation --require-hashes \
		-r packaging/requirements.txt
	$(VENV)/bin/pip --quiet install --no-build-isolation --no-deps --no-index .
	install -d $(DESTDIR)$(BINDIR)
	ln -sf $(VENV)/bin/llmuxd $(VENV)/bin/llmuxctl $(DESTDIR)$(BINDIR)/
	$(MAKE) install-files PYTHON=$(VENV)/bin/python3
	install -D -m 644 packaging/llmuxd.cdx.json $(DESTDIR)$(DOCDIR)/llmuxd.cdx.json

# Pins what pyproject.toml asks for, what it is built with, what the proxy is compared with, and
# the clients that are tried: the hash of every file.
UV ?= uv
PIN = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate
# What litellm needs for other providers than a server at an address.
NOT_ASKED = boto3 botocore s3transfer jmespath huggingface-hub hf-xet tokenizers fsspec filelock \
	tqdm python-dateutil six jsonschema jsonschema-specifications referencing rpds-py
.PHONY: requirements
requirements:
	$(PIN) --output-file packaging/requirements.txt pyproject.toml
	$(PIN) --output-file packaging/build-requirements.txt packaging/build-requirements.in
	$(PIN) --output-file tests/bench/litellm.txt tests/bench/litellm.in
	$(UV) pip compile --quiet --python-version 3.14 --python-platform x86_64-manylinux_2_28 \
		--generate-hashes --no-header --no-annotate $(foreach name,$(NOT_ASKED),--no-emit-package $(name)) \
		--output-file tests/machine/clients.txt tests/machine/clients.in

VERSION   = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' llmuxd/__init__.py)
# What `make install-venv` consists of, as CycloneDX; the same bytes from the same sources. It is
# kept, so that a build needs no cyclonedx-py; `make check` holds it against the pins.
CYCLONEDX ?= .venv/bin/cyclonedx-py
OUT       ?= packaging
.PHONY: sbom
sbom:
	install -d $(OUT)
	sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml > $(OUT)/pyproject.toml
	PYTHONWARNINGS=ignore $(CYCLONEDX) requirements packaging/requirements.txt \
		--pyproject $(OUT)/pyproject.toml --short-PURLs --output-reproducible \
		--of JSON -o $(OUT)/llmuxd.cdx.json
	rm $(OUT)/pyproject.toml

# That of the pins beside what is built, by the name that it has there; a package has its own, too.
BILL      = install -D -m 644 packaging/llmuxd.cdx.json dist/llmuxd-$(VERSION).cdx.json

.PHONY: sdist
sdist:
	$(PYTHON) packaging/sdist.py
	$(BILL)

# Elsewhere than on Fedora and its kin rpmbuild is told what their macros mean, and finds no
# packages of theirs to hold the spec's BuildRequires against. (rpmbuild forgets what --load told it
# when it turns to a noarch package.) RPMBUILD="--without tests" and the like are given to it.
RPMBUILD ?=
MACROS    = $(shell rpm --showrc | sed -n 's/^Macro path: //p')
FEDORA    = $(if $(shell rpm --eval '%{?pyproject_wheel:yes}'),,--nodeps \
	--macros '$(MACROS):$(CURDIR)/packaging/rpm/fedora.macros')
# A package with Debian's paths is of no use on those, which have the macros themselves.
RED_HAT   = $(wildcard /etc/redhat-release)
.PHONY: rpm-macros
rpm-macros:
	@test -z '$(RED_HAT)' || test -z "$(FEDORA)" || { echo \
		"pyproject-rpm-macros is missing: dnf builddep packaging/rpm/llmuxd.spec" >&2; exit 1; }

.PHONY: rpm
rpm: rpm-macros sdist
	rpmbuild -bb $(FEDORA) --define '_topdir $(CURDIR)/build/rpm' \
		--define '_sourcedir $(CURDIR)/dist' --define '_rpmdir $(CURDIR)/dist' \
		--define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
		$(RPMBUILD) packaging/rpm/llmuxd.spec
	$(PYTHON) packaging/bom.py dist/llmuxd-*$(VERSION)-*.rpm

# One package, what NVIDIA hosts need included; without the bytecode, which is for one Python.
DEB = build/deb
.PHONY: deb
deb:
	rm -rf $(DEB)
	$(MAKE) install DESTDIR=$(CURDIR)/$(DEB) PREFIX=/usr SYSCONFDIR=/etc PYTHON=/usr/bin/python3
	find $(DEB) -name __pycache__ -exec rm -r {} +
	find $(DEB)/usr/share/man -type f -exec gzip -9n {} +
	mv $(DEB)/usr/share/licenses/llmuxd/LICENSE $(DEB)/usr/share/doc/llmuxd/copyright
	rmdir -p --ignore-fail-on-non-empty $(DEB)/usr/share/licenses/llmuxd
	install -D -m 755 -t $(DEB)/DEBIAN packaging/deb/p*
	sed 's/@version@/$(VERSION)/' packaging/deb/control > $(DEB)/DEBIAN/control
	echo /etc/llmux/llmux.yaml > $(DEB)/DEBIAN/conffiles
	$(BILL)
	dpkg-deb --root-owner-group --build $(DEB) dist/
	$(PYTHON) packaging/bom.py dist/llmuxd_$(VERSION)-*.deb

# Lint, types and every ring of tests; RINGS="tools lint unit" picks some.
.PHONY: check
check:
	$(PYTHON) tests/rings.py $(RINGS)

# The switcher's properties with 10,000 examples of its own each time; about ten minutes.
.PHONY: nightly
nightly:
	HYPOTHESIS_PROFILE=nightly .venv/bin/python -P -m pytest -q tests/unit/test_switcher_properties.py

# Each prints its goals last; all run, and one that is missed makes it fail.
.PHONY: bench
bench:
	@failed=0; for name in policy_sim decision_cost; do \
		$(PYTHON) -m tests.bench.$$name || failed=1; \
	done; $(MAKE) --no-print-directory bench-control || failed=1; exit $$failed

# 200 clients that poll over D-Bus, and the gaps between the tokens of a stream meanwhile.
.PHONY: bench-control
bench-control:
	$(PYTHON) tests/rings.py tools
	.venv/bin/python -m tests.bench.control

# Twenty clients, six models and one fault after the other in the machine, for so many minutes.
MINUTES ?= 10
.PHONY: soak
soak:
	python3 -m tests.machine.soak $(MINUTES)

# The throw-away machine with two real models on 127.0.0.1:4000; TOUR=once ends after the tour.
.PHONY: demo
demo:
	python3 -m tests.machine.demo $(TOUR)

# The proxy beside nginx, litellm and forty lines of aiohttp, before one backend.
.PHONY: bench-proxy
bench-proxy:
	.venv/bin/python -m tests.bench.proxy

# What of a switch is llmuxd's own, part by part, in the machine.
.PHONY: bench-share
bench-share:
	python3 -m tests.machine run -- sh -c 'cd /usr/src/llmuxd && exec python3 -B -m tests.bench.own_share'

# Ten switches each way between two vLLM models, in the machine: a table, ratios and goals.
.PHONY: bench-switch
bench-switch:
	python3 -m tests.bench.switch
