"""Packaging of ITER (AAAI 2024, arXiv:2312.05616) as a BasicSR plugin. The version lives here, nowhere else."""

from pathlib import Path

from setuptools import find_packages, setup

readme = Path(__file__).with_name("README.md")
# Files for `-opt iter:NAME`, which in a checkout lie where users look for them.
shipped = {
    f"iter_model.shipped.{folder.replace('/', '.')}": folder
    for folder in ("options", "datasets/sample", *(f"datasets/sample/{kind}" for kind in ("gt", "lq", "real")))
}

setup(
    name="iter-sr",
    version="0.1.0",
    description="ITER: iterative token evaluation and refinement for real-world super-resolution, a BasicSR plugin",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    # A package called `datasets` would hide Hugging Face's, which pyiqa needs: only what is below that folder.
    packages=[
        *find_packages(include=["basicsr_compat*", "iter_arch*", "iter_model*"]),
        *find_packages("datasets", include=["iter_data*"]),
        *shipped,
    ],
    package_dir={"iter_data": "datasets/iter_data", **shipped},
    package_data={
        "": ["py.typed"],
        "iter_arch": ["weights/*"],
        **{package: ["*.jpg", "*.md", "*.png", "*.yml"] for package in shipped},
    },
    entry_points={"console_scripts": ["basicsr=iter_model.commands:main"]},
    install_requires=[
        # Its setup.py fails on 3.13 and later, where `python -m basicsr_compat.install` builds it.
        'basicsr==1.4.2; python_version < "3.13"',
        "einops",
        "lmdb",
        "numpy",
        "opencv-python",
        "pillow",
        "pyiqa",
        "pyyaml",
        "safetensors",
        "scipy",
        "setuptools<81",  # pyiqa's CLIP metrics still use pkg_resources, which 82 no longer has
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
