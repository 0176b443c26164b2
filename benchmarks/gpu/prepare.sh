#!/usr/bin/env bash
# Where there is a network: the wheels that a bare CUDA machine lacks, into .whl/ (at most 60 MiB). Take the checkout
# with .whl/ to that machine and run benchmarks/gpu/run.sh there.
#
#   benchmarks/gpu/prepare.sh            # for Python 3.12
#   GPU_PYTHON=3.11 benchmarks/gpu/prepare.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

rm -rf .whl
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary :all: --dest .whl \
    --python-version "${GPU_PYTHON:-3.12}" --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 --requirement requirements/gpu.txt

mib=$(du -sm .whl | cut -f1)
if [ "$mib" -gt 60 ]; then
    echo "The wheels are $mib MiB, and 60 may travel. Take something out of requirements/gpu.txt." >&2
    exit 1
fi
echo "$(ls .whl | wc -l) wheels, $mib MiB, in .whl/."
