"""The example of docs/extending.md: a degradation of one's own."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from iter_data import DEGRADATION_REGISTRY, SecondOrderDegradationDataset


@pytest.fixture
def section():
    """The options of the example, whose code has run."""
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    chapter = page.partition("## A degradation")[2].partition("\n## ")[0]
    code, options = (re.search(rf"```{kind}\n(.*?)```", chapter, re.DOTALL).group(1) for kind in ("python", "yaml"))
    exec(code, {"__name__": "example"})
    yield yaml.safe_load(options)["datasets"]["train"]["degradation"]
    del DEGRADATION_REGISTRY._obj_map["NoisyDegradation"]


@pytest.mark.parametrize("phase", ["train", "val"])
def test_a_degradation_of_ones_own(section, tmp_path, phase):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 128, np.uint8))
    opt = {"phase": phase, "dataroot_gt": str(tmp_path), "scale": 4, "degrade_in_worker": True, "degradation": section}
    item = SecondOrderDegradationDataset(opt | ({"gt_size": 64} if phase == "train" else {}))[0]
    assert item["lq"].shape == (3, 16, 16) and item["gt"].shape == (3, 64, 64)
    assert 255 * item["lq"].std().item() == pytest.approx(section["sigma"], rel=0.15)
    with pytest.raises(ValueError, match="datasets.train.degradation.sigma=-1 must be a number >= 0"):
        SecondOrderDegradationDataset(opt | {"phase": "train", "gt_size": 64, "degradation": section | {"sigma": -1}})
    with pytest.raises(ValueError, match="degradation.type='Noisy' is not a registered degradation"):
        SecondOrderDegradationDataset(opt | {"degradation": {"type": "Noisy"}})
