#!/usr/bin/env bash
# The kernel's tests on an emulated aarch64 processor, NEON and all: cross-compiled by Debian's compiler, run by
# qemu-user under Debian's Python and torch's own wheel. As root on Debian 12 on x86_64, from a clone with .venv; about
# 200 MB and a quarter of an hour. Arguments are handed to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
work=$PWD/build/aarch64
mkdir -p "$work"/{debs,root,wheels,site}

dpkg --add-architecture arm64
apt-get update
apt-get install -y --no-install-recommends g++-aarch64-linux-gnu qemu-user
packages="python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 libgomp1 libexpat1
  libffi8 libssl3 libsqlite3-0 libuuid1 libbz2-1.0 liblzma5 zlib1g"
(cd "$work/debs" && apt-get download $(printf '%s:arm64 ' $packages))
for package in "$work"/debs/*.deb; do dpkg -x "$package" "$work/root"; done

version() { "$python" -c "import $1; print($1.__version__)"; }
# the newest torch has no wheel of aarch64 without CUDA; the kernel's interface is that of 2.10
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --dest "$work/wheels" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
  torch==2.10.0 "numpy==$(version numpy)" "hypothesis==$(version hypothesis)"
for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/site"; done
# what is plain Python serves every processor
"$python" -m pip install --quiet --target "$work/site" -c constraints.txt --no-compile pytest sympy networkx jinja2 fsspec \
  filelock typing-extensions setuptools sortedcontainers

options=$("$python" -c 'from revtune.reversible.kernel import build; print(*build.OPTIONS)')
# shellcheck disable=SC2086
aarch64-linux-gnu-g++ $options revtune/reversible/kernel/csrc/revtune.cpp -o "$work/kernel.so" \
  -isystem "$work/site/torch/include" -L"$work/site/torch/lib" -Wl,--no-as-needed -ltorch_cpu

emulated() {
  PYTHONPATH="$work/package:$work/site" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
    qemu-aarch64 -L "$work/root" "$work/root/usr/bin/python3.11" -W ignore "$@"
}
rm -rf "$work/package"
mkdir "$work/package"
cp -r revtune tests examples pyproject.toml "$work/package"
cd "$work/package"
name=$(emulated -c 'from revtune.reversible.kernel import backend; print(backend.shipped_name())')
cp "$work/kernel.so" "revtune/reversible/kernel/$name"
emulated -c 'from revtune.reversible.kernel import backend; backend.insist(); print(backend.explain())'
emulated -m pytest -q -p no:cacheprovider -m 'not slow' -k 'not compile' "$@" \
  tests/reversible/kernel/test_{kernel,matmuls,tangent,step}.py
