# SPDX-License-Identifier: BSD-2-Clause
#
# make			build build/tproxy-load, build/tproxyd and build/tproxy
# make deps		install the Debian packages that building and testing need
# make run [CMD="..."]	deps, build, then show it at work on one command
# make check		deps, build, tests, with a short run of each of the following
# make restarttest [RESTARTS=1000] [CONNECTIONS=1000000] [UPGRADES=50] [KILLS=500]
#			tproxyd killed, reloaded and upgraded under load, which nobody may notice
# make soak [MINUTES=30]	all kinds of load, to see that nothing grows
# make fuzz [FUZZ=maps]	deps, build, each fuzz target (or one) for FUZZ_SECONDS=1800, two at a time
# make upgradetest	deps, build, 100 upgrades of the hooks under load, trouble at each call
# make bench [QUICK=1]	measure against a direct connection and other proxies
# make bench-report	write docs/performance.md from the last one
# make vmtest [VM=5.10]	the hooks on each kernel from 5.10 on, in qemu
# make boottest		a Debian system in qemu boots our services, which then live and die under systemd
# make suites		test suites of other projects, directly and through the proxy
# make torture		10,000 random sessions, directly and through the proxy
# make install		into $(DESTDIR)$(PREFIX); without DESTDIR the user tproxy is made, too
#
# O=DIR builds elsewhere, V=1 shows the commands, SAN=1 builds with ASan and UBSan.

VERSION := 0.1.0

# The built-in rules would be tried on every header that some .d file names: seconds, for nothing.
MAKEFLAGS += --no-builtin-rules

O      ?= build
# In one form, as .d files name what they are about by it.
override O := $(patsubst $(CURDIR)/%,%,$(abspath $(O)))
PREFIX ?= /usr/local
SBINDIR ?= $(PREFIX)/sbin
MANDIR ?= $(PREFIX)/share/man
UNITDIR ?= /lib/systemd/system
SYSCONFDIR ?= /etc
SYSUSERSDIR ?= /usr/lib/sysusers.d

# make's own default for CC is cc
ifeq ($(origin CC),default)
CC := gcc
endif
CLANG ?= clang
LLVM_STRIP ?= llvm-strip
# bpftool and other tools of the administrator are not on every user's PATH
export PATH := $(PATH):/usr/sbin:/sbin
BPFTOOL ?= bpftool

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)';)

DEPS_BUILD := gcc make clang llvm bpftool pkg-config libbpf-dev libelf-dev zlib1g-dev libinih-dev \
	libjansson-dev libmnl-dev libsystemd-dev libcap-dev libseccomp-dev
DEPS_TEST := libcmocka-dev python3 iproute2 procps util-linux strace curl nginx-light iperf3 git \
	openssh-client openssh-server nftables libpython3.11-testsuite systemd man-db mandoc clang-format \
	libclang-rt-14-dev valgrind

DEPS_VM := qemu-system-x86 busybox-static mmdebstrap kmod lz4 zstd xz-utils

DEPS_SUITES := wrk fcgiwrap vsftpd openssl redis-server redis-tools postgresql \
	golang-1.19-go golang-1.19-src

PKGS := libbpf libelf zlib inih jansson libmnl libsystemd libcap libseccomp

comma := ,
CPPFLAGS += -D_GNU_SOURCE -I$(O) -Itools/lib
CFLAGS ?= -O2 -g
ALL_CFLAGS = -std=gnu11 -Wall -Wextra -Werror -Wmissing-prototypes -Wshadow -Wvla \
	-fno-strict-aliasing -fstack-protector-strong -fPIE -MMD -MP $(SAN_FLAGS) $(CFLAGS)
ALL_LDFLAGS = -pie -Wl,--as-needed -Wl,-z,relro,-z,now $(SAN_FLAGS) $(LDFLAGS)
SAN_KINDS := $(if $(FUZZING),fuzzer-no-link$(comma))address,undefined
ifneq ($(SAN)$(FUZZING),)
SAN_FLAGS := -fsanitize=$(SAN_KINDS) -fno-sanitize-recover=all -fno-omit-frame-pointer
else
CPPFLAGS += -D_FORTIFY_SOURCE=2
endif

# The packages' flags are asked for once, and only by goals that compile.
PKG_CFLAGS = $(eval PKG_CFLAGS := $$(shell pkg-config --cflags $(PKGS)))$(PKG_CFLAGS)
PKG_LIBS = $(eval PKG_LIBS := $$(shell pkg-config --libs $(PKGS)))$(PKG_LIBS)

objects = $(patsubst %.c,$(O)/%.o,$(wildcard $(1)/*.c))
LIB_OBJS := $(call objects,tools/lib)
LOADER_OBJS := $(call objects,loader)
PROXY_OBJS := $(call objects,proxy)
TOOL_OBJS := $(call objects,tools)
PROGRAMS := $(O)/tproxy-load $(O)/tproxyd $(O)/tproxy

# Unit tests compile the shipped sources: tests/unit/test_X.c is one program, linked with the library
# and the objects of the programs less their main().
UNIT_TESTS := $(patsubst tests/unit/%.c,$(O)/tests/%,$(wildcard tests/unit/test_*.c))
TEST_PROGRAMS := $(patsubst tests/programs/%.c,$(O)/tests/%,$(wildcard tests/programs/*.c))
BENCH_PROGRAMS := $(addprefix $(O)/tests/bench/,load origin relay empty.bpf.o least.bpf.o)

.PHONY: all
all: $(PROGRAMS)

# --- what is needed -------------------------------------------------------------------------------

.PHONY: deps
deps:
	$(Q)missing=; for p in $(DEPS_BUILD) $(DEPS_TEST); do \
		dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || \
			missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && \
		apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi

.PHONY: deps-vm
deps-vm:
	$(Q)$(MAKE) --no-print-directory deps DEPS_BUILD='$(DEPS_VM)' DEPS_TEST=

# Says what is missing, once, instead of failing at the first header.
$(O)/.deps-ok: Makefile
	$(Q)mkdir -p $(O); missing=; \
	for tool in $(firstword $(CC)) $(CLANG) $(LLVM_STRIP) $(BPFTOOL) pkg-config; do \
		command -v $$tool >/dev/null || missing="$$missing $$tool"; \
	done; \
	for lib in $(PKGS); do \
		pkg-config --exists $$lib 2>/dev/null || missing="$$missing $$lib"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "missing:$$missing" >&2; \
		echo "install them with: sudo make deps" >&2; \
		echo "  or: apt-get install $(DEPS_BUILD)" >&2; \
		exit 1; \
	fi; touch $@

# --- kernel side ----------------------------------------------------------------------------------

BPF_CFLAGS := -O2 -g -target bpf -mcpu=v3 -Wall -Wextra -Werror \
	-I/usr/include/$(shell $(CC) -print-multiarch 2>/dev/null)

$(O)/%.bpf.o: %.bpf.c $(O)/.deps-ok
	$(call say,BPF,$@)mkdir -p $(@D) && \
	$(CLANG) $(BPF_CFLAGS) -MMD -MP -c $< -o $@ && $(LLVM_STRIP) -g $@

$(O)/bpf/%.skel.h: $(O)/bpf/%.bpf.o
	$(call say,SKEL,$@)$(BPFTOOL) gen skeleton $< name $*_bpf > $@.tmp && mv $@.tmp $@

# --- user space -----------------------------------------------------------------------------------

$(O)/version.h: Makefile
	$(Q)mkdir -p $(O) && printf '#define TPROXY_VERSION "%s"\n' '$(VERSION)' > $@

$(O)/%.o: %.c $(O)/.deps-ok $(O)/version.h
	$(call say,CC,$@)mkdir -p $(@D) && $(CC) $(CPPFLAGS) $(PKG_CFLAGS) $(ALL_CFLAGS) -c $< -o $@

$(LOADER_OBJS): $(O)/bpf/tproxy.skel.h

# What the three programs share is an archive, so that each takes only what it uses.
LIB := $(O)/libtproxy.a
$(LIB): $(LIB_OBJS)
	$(call say,AR,$@)rm -f $@ && $(AR) rcs $@ $^

link = $(call say,LINK,$@)$(CC) $(ALL_LDFLAGS) -o $@ $(filter %.o %.a,$^) $(PKG_LIBS)

$(O)/tproxy-load: $(LOADER_OBJS) $(LIB)
	$(link)
$(O)/tproxyd: $(PROXY_OBJS) $(LIB)
	$(link)
$(O)/tproxy: $(TOOL_OBJS) $(LIB)
	$(link)

$(O)/tests/%: $(O)/tests/unit/%.o $(filter-out %/main.o,$(PROXY_OBJS)) $(O)/loader/convert.o $(LIB)
	$(call say,LINK,$@)$(CC) $(ALL_LDFLAGS) -o $@ $(filter %.o %.a,$^) $(PKG_LIBS) -lcmocka
$(O)/tests/bench/relay: $(O)/proxy/packet.o
$(O)/tests/bench/%: $(O)/tests/bench/%.o
	$(link)
$(O)/tests/%: $(O)/tests/programs/%.o
	$(link)

# Other versions of the three programs, to upgrade from and to: these sources, edited.
SOURCES := Makefile $(wildcard bpf/* loader/* proxy/* tools/*.* tools/lib/*)
VARIANTS := $(patsubst tests/variants/%.sed,$(O)/tests/variants/%/tproxy-load,\
	$(wildcard tests/variants/*.sed))
$(O)/tests/variants/%/tproxy-load: tests/variants/%.sed $(SOURCES)
	$(call say,VARIANT,$*)rm -rf $(@D) && mkdir -p $(@D)/src && \
	cp --parents $(SOURCES) $(@D)/src && \
	sed -i -f $< $$(find $(@D)/src -name '*.[ch]') && \
	$(MAKE) -s -C $(@D)/src O=.. SAN= CFLAGS='-O1 -Wno-missing-field-initializers' all

.PHONY: tests
tests: $(UNIT_TESTS) $(TEST_PROGRAMS) $(if $(SAN),,$(VARIANTS))

# --- fuzz targets ---------------------------------------------------------------------------------
#
# tests/fuzz/fuzz_X.c is one program, linked with the objects of all three, so that it fuzzes what is
# shipped; what it defines itself (the kernel's side, mostly) is used in place of a module or library
# function of that name. Everything is compiled by clang, in a build directory of its own.

FUZZ_TARGETS := $(patsubst tests/fuzz/%.c,$(O)/%,$(wildcard tests/fuzz/fuzz_*.c))

.PHONY: fuzzers fuzz_targets
fuzzers:
	$(Q)$(MAKE) --no-print-directory O=$(abspath $(O))/fuzz CC=$(CLANG) FUZZING=1 fuzz_targets
fuzz_targets: $(FUZZ_TARGETS)

# main() is the fuzzer's; the tables of options in these files are wanted.
$(O)/%_main.o: %/main.c $(O)/.deps-ok $(O)/version.h
	$(call say,CC,$@)mkdir -p $(@D) && $(CC) $(CPPFLAGS) $(PKG_CFLAGS) $(ALL_CFLAGS) \
		-Wno-missing-prototypes -Dmain=$*_main -Dprogram=$*_program -c $< -o $@
$(O)/loader_main.o: $(O)/bpf/tproxy.skel.h

ALL_OBJS := $(filter-out %/main.o,$(LOADER_OBJS) $(PROXY_OBJS) $(TOOL_OBJS)) $(LIB_OBJS)
$(O)/libfuzzed.a: $(ALL_OBJS) $(addprefix $(O)/,loader_main.o proxy_main.o tools_main.o)
	$(call say,AR,$@)rm -f $@ && $(AR) qcs $@ $^

$(O)/fuzz_%: $(O)/tests/fuzz/fuzz_%.o $(O)/libfuzzed.a
	$(call say,LINK,$@)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(PKG_LIBS)

.SECONDARY:

# --- the two commands -----------------------------------------------------------------------------

.PHONY: run
run: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)O=$(O) tests/demo $(if $(value CMD),'$(subst ','\'',$(value CMD))')

.PHONY: check
check: deps deps-vm
	$(Q)$(MAKE) --no-print-directory all tests
	$(Q)O=$(O) tests/run $(TESTS)

# --- longer ones ----------------------------------------------------------------------------------

RESTARTS ?= 1000
CONNECTIONS ?= 1000000
UPGRADES ?= 50
KILLS ?= 500
MINUTES ?= 30
FUZZ_SECONDS ?= 1800
TAKEOVERS ?= 50
STABS ?= 100

.PHONY: bench bench-report vmtest boottest suites torture restarttest soak fuzz upgradetest
fuzz: deps
	$(Q)$(MAKE) --no-print-directory fuzzers
	$(Q)O=$(O) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/run $(FUZZ)

bench: deps
	$(Q)$(MAKE) --no-print-directory all $(BENCH_PROGRAMS)
	$(Q)O=$(O) tests/bench/run

bench-report:
	$(Q)O=$(O) tests/bench/report.py

vmtest: deps deps-vm
	$(Q)$(MAKE) --no-print-directory all tests
	$(Q)O=$(O) tests/vm/run $(VM)

boottest: deps deps-vm
	$(Q)$(MAKE) --no-print-directory all
	$(Q)O=$(O) tests/vm/boot $(VM)

suites: deps
	$(Q)$(MAKE) --no-print-directory deps DEPS_TEST= DEPS_BUILD='$(DEPS_SUITES)'
	$(Q)$(MAKE) --no-print-directory all
	$(Q)O=$(O) tests/suites/run $(SUITES)

torture: deps
	$(Q)$(MAKE) --no-print-directory all tests
	$(Q)O=$(O) TORTURE=10000 TPTEST_DEADLINE=7200 tests/run 'integration/test_conformance$$:torture'

# The other build that upgrades go to and from is compiled differently.
restarttest: deps
	$(Q)$(MAKE) --no-print-directory all tests
	$(Q)$(MAKE) --no-print-directory O=$(O)/other CFLAGS='-O1 -g' $(O)/other/tproxyd
	$(Q)O=$(O) OTHER_BUILD=$(O)/other/tproxyd RESTARTS=$(RESTARTS) CONNECTIONS=$(CONNECTIONS) \
		UPGRADES=$(UPGRADES) KILLS=$(KILLS) MEGABYTES=1024 TPTEST_FIGURES=1 TPTEST_DEADLINE=7200 \
		TAKEOVERS=$(TAKEOVERS) STABS=$(STABS) \
		tests/run integration/test_restart integration/test_takeover

soak: deps
	$(Q)$(MAKE) --no-print-directory all tests
	$(Q)O=$(O) MINUTES=$(MINUTES) TPTEST_FIGURES=1 TPTEST_DEADLINE=$$(($(MINUTES) * 60 + 400)) \
		tests/run integration/test_soak

upgradetest: deps
	$(Q)$(MAKE) --no-print-directory all tests
	$(Q)O=$(O) UPGRADES=100 STEPS=0 TPTEST_DEADLINE=3600 \
		tests/run integration/test_upgrade integration/test_transfer \
		integration/test_loader_kill integration/test_worker_kill

# --- the rest -------------------------------------------------------------------------------------

.PHONY: install uninstall clean format
# tproxyd@2-4.service is the second of four parts: the same but for that, and not beside the whole.
PART_OF_UNIT = -e 's|^Description=.*|&, part %I of the ports|' -e 's|^ExecStart=.*|& --part %I|' \
	-e 's|^Conflicts=.*|& tproxyd.service\nAfter=tproxyd.service|'

install: all
	install -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(MANDIR)/man8 $(DESTDIR)$(MANDIR)/man5 \
		$(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSCONFDIR)/tproxy $(DESTDIR)$(SYSUSERSDIR)
	install -m 755 $(PROGRAMS) $(DESTDIR)$(SBINDIR)
	install -m 644 docs/*.8 $(DESTDIR)$(MANDIR)/man8
	install -m 644 docs/*.5 $(DESTDIR)$(MANDIR)/man5
	for unit in systemd/*.service; do \
		sed 's|@SBINDIR@|$(SBINDIR)|g' $$unit > $(DESTDIR)$(UNITDIR)/$${unit##*/}; \
	done
	sed $(PART_OF_UNIT) $(DESTDIR)$(UNITDIR)/tproxyd.service > $(DESTDIR)$(UNITDIR)/tproxyd@.service
	install -m 644 systemd/sysusers.conf $(DESTDIR)$(SYSUSERSDIR)/tproxy.conf
	test -n "$(DESTDIR)" || systemd-sysusers $(SYSUSERSDIR)/tproxy.conf
	test -e $(DESTDIR)$(SYSCONFDIR)/tproxy/tproxy.conf || \
		install -m 644 systemd/tproxy.conf $(DESTDIR)$(SYSCONFDIR)/tproxy/tproxy.conf

# The configuration stays: it is the administrator's. So does the user, whose files may be left.
uninstall:
	rm -f $(addprefix $(DESTDIR)$(SBINDIR)/,$(notdir $(PROGRAMS)))
	rm -f $(addprefix $(DESTDIR)$(MANDIR)/man8/,$(notdir $(wildcard docs/*.8)))
	rm -f $(addprefix $(DESTDIR)$(MANDIR)/man5/,$(notdir $(wildcard docs/*.5)))
	rm -f $(DESTDIR)$(SYSUSERSDIR)/tproxy.conf
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(notdir $(wildcard systemd/*.service)) tproxyd@.service)

clean:
	rm -rf $(O)

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

-include $(shell find $(O) -name '*.d' 2>/dev/null)
