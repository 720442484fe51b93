#!/usr/bin/env bash
# Gather in .gpu what a machine without package registries lacks: bash pack.sh ARCHIVE [PYTHON]
# Run in the repository's root, with the Python that nni-robust is installed in. README.md says more.
set -euo pipefail
archive=${1:?which cifar10-jpeg.tar.xz?}
python=${2:-python3}
site=.gpu/site
rm -rf .gpu
mkdir -p "$site"
# The other machine has Python 3.12 with torch, torchvision, pytorch-lightning, scikit-learn and more.
"$python" -m pip install -q --target "$site" --no-deps --no-compile --only-binary=:all: \
    --python-version 3.12 --implementation cp --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform any \
    pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5 \
    torchattacks==3.5.1 json-tricks==3.17.3 schema==0.7.8 typeguard==4.1.2 astor==0.8.1 \
    prettytable==3.18.0 wcwidth==0.9.4 responses==0.23.1 websockets==17.4
# NNI without its web server, which is 190 MB and not needed here; and our entry points.
"$python" - "$site" <<'PYTHON'
import importlib.metadata
import importlib.util
import pathlib
import shutil
import sys

site = pathlib.Path(sys.argv[1])
source = importlib.util.find_spec("nni").submodule_search_locations[0]
shutil.copytree(source, site / "nni", ignore=shutil.ignore_patterns("__pycache__"))
for name in ("nni", "nni-robust"):
    folder = pathlib.Path(str(importlib.metadata.distribution(name)._path))
    shutil.copytree(folder, site / folder.name)
PYTHON
cp "$archive" .gpu/cifar10-jpeg.tar.xz
du -sh .gpu
