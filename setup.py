"""Packaging of ITER (AAAI 2024, arXiv:2312.05616) as a BasicSR plugin. The version lives here, nowhere else."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

if not (3, 10) <= sys.version_info[:2] < (3, 13):
    raise SystemExit(
        f"iter-sr needs Python 3.10, 3.11 or 3.12, this is {sys.version.split()[0]}: BasicSR 1.4.2 does not build on "
        "3.13 and later. Choose another interpreter, e.g. `make demo PYTHON=python3.12`."
    )

readme = Path(__file__).with_name("README.md")

setup(
    name="iter-sr",
    version="0.1.0",
    description="ITER: iterative token evaluation and refinement for real-world super-resolution, a BasicSR plugin",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    # A package called `datasets` would hide Hugging Face's, which pyiqa needs: only what is below that folder.
    packages=[
        *find_packages(include=["basicsr_compat*", "iter_arch*", "iter_model*"]),
        *find_packages("datasets", include=["iter_data*"]),
    ],
    package_dir={"iter_data": "datasets/iter_data"},
    package_data={"iter_arch": ["weights/*"]},
    entry_points={"console_scripts": ["basicsr=iter_model.commands:main"]},
    install_requires=[
        "basicsr==1.4.2",
        "einops",
        "lmdb",
        "numpy",
        "opencv-python",
        "pillow",
        "pyiqa",
        "pyyaml",
        "safetensors",
        "scipy",
        "setuptools<81",  # pyiqa's CLIP metrics and BasicSR's build still use pkg_resources
        "tensorboard",
        "torch>=2.6",  # before, weights_only=True could be made to run code (CVE-2025-32434)
        "torchvision",
        "tqdm",
    ],
    extras_require={
        "benchmarks": ["matplotlib"],
        "spandrel": ["spandrel>=0.4"],
        "test": ["hypothesis", "pytest", "ruff", "scikit-image", "spandrel>=0.4"],
    },
)
