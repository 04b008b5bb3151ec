"""What all tests share: one thread, no GPU unless asked for, the tiers of the markers."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads: the same sums on every machine

import pytest  # noqa: E402

import basicsr_compat  # noqa: E402

basicsr_compat.install_pipeline()

# What PyTorch 2.14 draws from ten numbers with the seed 1; see the marker `draws`.
DRAWN = [0, 5, 3]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--network", action="store_true", help="run the tests that ask a package index too")


def pytest_collection_modifyitems(config, items):
    for option in ("slow", "network"):
        if not config.getoption(f"--{option}"):
            for item in items:
                if option in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=f"{option}; runs with --{option}"))


def pytest_runtest_setup(item):
    if "gpu" in item.keywords:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    if "draws" in item.keywords:
        import torch

        if torch.multinomial(torch.ones(10), 3, generator=torch.Generator().manual_seed(1)).tolist() != DRAWN:
            pytest.skip("this PyTorch draws other random numbers")


@pytest.fixture
def shared_data() -> Path:
    """The folder of image sets that are not part of the repository; the test is skipped where there is none."""
    folder = os.environ.get("ITER_SHARED_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs ITER_SHARED_DATA=<folder of image sets>")
    return Path(folder)


@pytest.fixture
def photo_folder(tmp_path):
    """An empty folder for photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder
