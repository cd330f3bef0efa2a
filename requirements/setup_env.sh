#!/usr/bin/env bash
# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
#
# Makes .venv in the checkout from requirements/pins.txt; with --classic, .venv-classic from
# pins-classic.txt; with --ops, with mmcv's compiled ops.
# `make` calls it before everything else. It may be interrupted anywhere and called again.
#
#   PYTHON         interpreter to make .venv from         (python3.11)
#   MMDENSE_CACHE  where the wheels of mmcv's ops are kept (~/.cache/mmdense)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The caller's packages are not ours, and .venv, if it is active, is not what it is made from.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
PATH=${PATH//"$PWD/.venv/bin:"/}
PATH=${PATH//"$PWD/.venv-classic/bin:"/}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

PINS=requirements/pins.txt
VENV=.venv
MMCV=onedl-mmcv
WITH_OPS=
for argument in "$@"; do
    case $argument in
        --classic) PINS=requirements/pins-classic.txt VENV=.venv-classic MMCV=mmcv ;;
        --ops) WITH_OPS=1 ;;
        *) echo "set-up: unknown argument $argument: there are --ops and --classic" >&2; exit 1 ;;
    esac
done
ALL_PINS="$PINS requirements/pins-common.txt"
PY=$PWD/$VENV/bin/python
CACHE=${MMDENSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmdense}
# Each is written last, so that what was interrupted is not taken for finished.
STAMP=$VENV/mmdense-pins.sha256
STAMP_SELF=$VENV/mmdense-self.sha256
STAMP_OPS=$VENV/mmdense-ops.stat

say() { echo "set-up: $*"; }
die() { echo "set-up: $*" >&2; exit 1; }
pip() { "$PY" -m pip "$@"; }
pinned() { grep -ohE "^$1==[^ ;]+" $ALL_PINS || die "$PINS does not pin $1"; }
locked() { # descriptor, what it is open on: one set-up at a time, where flock exists
    command -v flock >/dev/null || return 0
    flock -n "$1" || { say "waiting for another set-up that uses $2"; flock "$1"; }
}

find_python() {
    local python=${PYTHON:-python3.11}
    command -v "$python" >/dev/null ||
        die "no $python on this machine: install python 3.11 (Debian: apt install python3.11 python3.11-venv python3.11-dev), or say PYTHON=/path/to/python3.11 make"
    [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] ||
        die "$python is not python 3.11, which $PINS is made for: PYTHON=/path/to/python3.11 make, or MMDENSE_PYTHON=$python make to use it with the packages it has"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python has no venv module: install it (Debian: apt install python3.11-venv)"
    echo "$python"
}

digest() { # of what the file arguments say and of the python of .venv, where it runs
    { cat "$@"; "$PY" -c 'import sys; print(sys.version_info[:2], sys.prefix)'; } 2>/dev/null |
        sha256sum
}

stamped() { # stamp file, files...
    [ -f "$1" ] && [ -x "$PY" ] && [ "$(cat "$1")" = "$(digest "${@:2}")" ]
}

make_venv() {
    local python
    python=$(find_python)
    say "making $VENV from $PINS (a few minutes, about 3 GB to download)"
    rm -rf $VENV
    "$python" -m venv $VENV || die "$python -m venv $VENV failed (see above)"
    {
        pip install --quiet --no-deps "$(pinned setuptools)" "$(pinned wheel)" \
            "$(pinned packaging)" &&
            # Before torch: mmcv compiles its ops where it can import torch (minutes), and needs
            # none for pretraining. Without the cache: pip's does not know what a wheel of mmcv
            # was compiled against.
            pip install --quiet --no-deps --no-build-isolation --no-cache-dir \
                "$(pinned $MMCV)" &&
            pip install --quiet --no-deps --no-build-isolation -r $PINS
    } || die "pip could not install $PINS (see above): is the package index reachable, is the disk full? Call make again to go on."
    digest $ALL_PINS >$STAMP
}

install_self() {
    pip install --quiet --no-deps --no-build-isolation -e . ||
        die 'pip could not install mmdense itself (see above)'
    digest setup.py requirements/runtime.txt mmdense/version.py >$STAMP_SELF
}

ops_state() { # of the files that decide whether they import
    stat -c '%n %s %Y' $VENV/lib/python3.11/site-packages/{mmcv/_ext.*,torch/lib/libtorch_cpu.so} \
        2>/dev/null || true
}

ops_import() {
    # Importing takes seconds: not again while the files are those that did import.
    if [ -f $STAMP_OPS ] && [ "$(cat $STAMP_OPS)" = "$(ops_state)" ]; then return 0; fi
    "$PY" -c 'import mmcv.ops' 2>/dev/null && ops_state >$STAMP_OPS
}

build_ops() { # directory: the wheel appears there under its name when it is whole
    command -v "${CXX:-g++}" >/dev/null ||
        die "no C++ compiler for mmcv's ops: install one (Debian: apt install g++)"
    "$PY" -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))' \
        2>/dev/null || die "no Python.h for mmcv's ops: install it (Debian: apt install python3.11-dev)"
    building=$(mktemp -d "$1/building.XXXXXX")
    trap 'rm -rf "$building"' EXIT
    say "compiling mmcv's ops, once for this torch (about 10 minutes on 2 cores; log: $1/build.log)"
    # -g0 halves the time. For the CPU: that is all the tests use, on any machine.
    PATH=$PWD/$VENV/bin:$PATH CFLAGS='-g0 -O2' FORCE_CUDA=0 CUDA_VISIBLE_DEVICES='' MAX_JOBS=$(nproc) \
        pip wheel --no-deps --no-build-isolation --no-cache-dir -w "$building" "$(pinned $MMCV)" \
        >"$1/build.log" 2>&1 || {
        tail -n 20 "$1/build.log" >&2
        die "mmcv's ops did not compile, log: $1/build.log"
    }
    mv "$building"/*.whl "$1/"
    rm -rf "$building"
}

install_ops() {
    local dir wheel
    # One wheel for each mmcv, torch and interpreter.
    dir=$CACHE/wheels/$(pinned $MMCV | sed s/==/-/)/$("$PY" -c '
import sysconfig
import torch
print("torch-%s/%s" % (torch.__version__, sysconfig.get_config_var("SOABI")))')
    mkdir -p "$dir" || die "cannot write to $dir: say MMDENSE_CACHE=/some/folder"
    exec 8<"$dir"
    locked 8 "$dir"
    for attempt in kept new; do
        wheel=$(find "$dir" -maxdepth 1 -name '*.whl' | head -n 1)
        if [ -z "$wheel" ]; then
            attempt=new
            rm -rf "$dir"/building.*  # of an interrupted build; nobody else holds the lock
            build_ops "$dir"
            wheel=$(find "$dir" -maxdepth 1 -name '*.whl' | head -n 1)
        fi
        if pip install --quiet --no-deps --force-reinstall --no-index "$wheel" && ops_import; then
            say "mmcv's ops: $wheel"
            exec 8<&-
            return
        fi
        say "mmcv's ops do not import from $wheel"
        rm -f "$wheel"
        [ $attempt = kept ] || break
    done
    "$PY" -c 'import mmcv.ops' || true
    die "mmcv's ops, compiled just now, do not import (see above)"
}

exec 9<$PINS
locked 9 "$PWD/$VENV"
stamped $STAMP $ALL_PINS || make_venv
stamped $STAMP_SELF setup.py requirements/runtime.txt mmdense/version.py || install_self
if [ -n "$WITH_OPS" ]; then ops_import || install_ops; fi
