"""SecondOrderDegradation: Real-ESRGAN's values by default, and refusals that say what to do."""

import re
from pathlib import Path

import pytest
import yaml

from iter_data import SecondOrderDegradation, read_degradation


def test_an_empty_section_gives_real_esrgans_values():
    options = read_degradation(None)
    assert options == read_degradation({}) == SecondOrderDegradation()
    # a sample of the published train_realesrgan_x4plus.yml, from both of its places
    assert options.blur_sigma == (0.2, 3) and options.blur_sigma2 == (0.2, 1.5)
    assert options.kernel_prob == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    assert options.resize_prob == (0.2, 0.7, 0.1) and options.resize_range == (0.15, 1.5)
    assert options.resize_prob2 == (0.3, 0.4, 0.3) and options.resize_range2 == (0.3, 1.2)
    assert options.noise_range == (1, 30) and options.poisson_scale_range2 == (0.05, 2.5)
    assert options.final_sinc_prob == 0.8 and options.second_blur_prob == 0.8


def test_the_readme_shows_every_option_with_its_default():
    readme = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(datasets:\n  train:.*?)```", readme, re.DOTALL).group(1)
    section = yaml.safe_load(block)["datasets"]["train"]["degradation"]
    assert set(section) == set(SecondOrderDegradation.__dataclass_fields__)
    assert read_degradation(section) == SecondOrderDegradation()


def test_yml_lists_become_values():
    options = read_degradation({"type": "SecondOrderDegradation", "jpeg_range": [40, 60]})
    assert options.jpeg_range == (40, 60)


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"train\.degradation\.gray_nose_prob .*'gray_noise_prob'"):
        read_degradation({"gray_nose_prob": 0.4}, "train.degradation")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("blur_kernel_size", 20, "odd, >= 7"),
        ("blur_kernel_size2", 5, "odd, >= 7"),
        ("kernel_list", ["iso", "skew"], "iso or aniso or "),
        ("kernel_list2", [], "one entry at least"),
        ("kernel_prob", [1, 2], "6 numbers"),
        ("kernel_prob2", [0, 0, 0, 0, 0, 0], "not all 0"),
        ("sinc_prob", 1.1, r"in \[0, 1\]"),
        ("final_sinc_prob", "1e-1", r"in \[0, 1\]"),
        ("second_blur_prob", True, r"in \[0, 1\]"),
        ("blur_sigma", [1, 1], "low < high"),
        ("betag_range", [1.5, 4], "contains 1"),
        ("resize_prob", [0.5, 0.5], "up, down and keep"),
        ("resize_range", [0.01, 1.5], "0.05 <= low"),
        ("resize_range2", [0.2, 0.9], "contains 1"),
        ("noise_range", [30, 1], "low <= high"),
        ("poisson_scale_range", 3, r"must be \[a number, a number\]"),
        ("jpeg_range", [30, 100], "high <= 99"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_value_and_rule(key, value, rule):
    with pytest.raises(ValueError, match=rf"degradation\.{key}=.*{rule}"):
        read_degradation({key: value})


def test_a_section_that_is_no_section_is_refused():
    with pytest.raises(ValueError, match="must be a section"):
        read_degradation([30, 95])
