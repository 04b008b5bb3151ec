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
        "iter_arch": ["pretrained/*.md", "weights/*"],
        **{package: ["*.jpg", "*.md", "*.png", "*.yml"] for package in shipped},
    },
    entry_points={"console_scripts": ["basicsr=iter_model.commands:main"]},
    # The oldest versions that the tests have run with, tests/lowest.txt; no upper bound but where something is broken.
    install_requires=[
        # Its setup.py fails on 3.13 and later, where `python -m basicsr_compat.install` builds it.
        'basicsr==1.4.2; python_version < "3.13"',
        "einops>=0.7.0",
        "lmdb>=1.4.1",
        "numpy>=1.26.4",
        "opencv-python>=4.8.1.78",
        "pillow>=11.3.0",
        "pyiqa>=0.1.16",
        "pyyaml>=6.0.1",
        "safetensors>=0.4.5",
        "scipy>=1.11.4",
        "setuptools<81",  # pyiqa's CLIP metrics still use pkg_resources, which 82 no longer has
        "tensorboard>=2.16.2",
        "torch>=2.6.0",  # before, weights_only=True could be made to run code (CVE-2025-32434)
        "torchvision>=0.21.0",
        "tqdm>=4.67.1",
    ],
    extras_require={
        "benchmarks": ["matplotlib"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "export": ["onnx", "onnxscript"],
        "heif": ["pillow-heif"],
        "hub": ["huggingface_hub"],
        "spandrel": ["spandrel>=0.4.0"],
        "test": [
            "gradio>=6.31,<7",
            "hypothesis",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "pytest",
            "pytest-xdist",
            "ruff",
            "scikit-image",
            "selenium",
            "spandrel>=0.4.0",
            "wheel",
        ],
        "web": ["gradio>=6.31,<7"],
    },
)
