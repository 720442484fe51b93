#!/usr/bin/env bash
# Run a script of this folder with what pack.sh gathered: bash on_device.sh SCRIPT [ARGUMENTS]
# Run in the repository's root. The package is put together as an installation would.
set -euo pipefail
package=$(mktemp -d)
cp -r nni_robust "$package/"
cp -r search_spaces strategies evaluators experiments "$package/nni_robust/"
# What the machine has comes first, but for what it may have in another form.
export PYTHONPATH="$package:$PWD/.gpu/site" PYTHONUNBUFFERED=1
script=$1
shift
exec "${PYTHON:-python3}" "experiments/benchmarks/gpu/$script" "$@"
