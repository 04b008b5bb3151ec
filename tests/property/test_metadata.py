"""Hostile and damaged descriptions of a network in a checkpoint: refused on one line, without a traceback or a hang."""

import copy
import json
import re
import time

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from small_networks import config, small_iter

from iter_arch import load_pretrained
from iter_model import commands

VALUES = st.one_of(
    st.sampled_from(
        [0, -1, 1, 3, 7, 10**9, 10**30, 0.5, float("nan"), float("inf"), "x", "", None, True, [], {}, [[]]]
    ),
    st.lists(st.sampled_from([0, -2, 1, 10**6, "a", None]), max_size=40),
    st.dictionaries(st.sampled_from(["type", "dim", "heads", "levels", "depth"]), st.integers(-2, 200), max_size=3),
)
SECTIONS = [
    ("scale",),
    ("vqgan",),
    ("vqgan", "type"),
    ("vqgan", "base_channels"),
    ("vqgan", "multipliers"),
    ("vqgan", "res_blocks"),
    ("vqgan", "quantizer"),
    ("vqgan", "quantizer", "type"),
    ("vqgan", "quantizer", "num_codes"),
    ("vqgan", "quantizer", "dim"),
    ("vqgan", "swin"),
    *(("vqgan", "swin", key) for key in ("dim", "heads", "window", "depth", "groups", "mlp_ratio", "gate")),
    ("lq_encoder", "stem_channels"),
    *((part, "swin", key) for part in ("lq_encoder", "refiner") for key in ("dim", "heads", "depth", "window")),
    ("evaluator",),
    ("sampling",),
    ("sampling", "steps"),
    ("sampling", "selection"),
    ("heads",),  # as earlier versions have it, in a section or not
    ("refiner", "heads"),
    ("vqgan", "codebook_size"),
    ("nothing",),
]


@pytest.fixture(scope="module")
def weights():
    return {key: value.clone() for key, value in small_iter().state_dict().items()}


def changed(path, value):
    whole = copy.deepcopy(config())
    section = whole
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    return whole


@pytest.mark.long
def test_no_description_is_a_traceback(weights, tmp_path):
    path = tmp_path / "net.safetensors"

    @settings(
        max_examples=300,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(where=st.sampled_from(SECTIONS), value=VALUES)
    def check(where, value):
        save_file(weights, path, {"iter_config": json.dumps(changed(where, value))})
        start = time.process_time()
        try:
            load_pretrained(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 3000
        assert time.process_time() - start < 20

    check()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '"x"',
        "[" * 100000,
        '{"scale": ' + "9" * 5000 + "}",
        '{"scale": 4}',
        "\x00",
        '{"a": NaN}',
    ],
    ids=lambda text: text[:12],
)
def test_no_text_in_the_place_of_a_description_is_a_traceback(weights, tmp_path, text):
    save_file(weights, tmp_path / "net.safetensors", {"iter_config": text})
    try:
        load_pretrained(tmp_path / "net.safetensors")
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)]
)
def test_no_tensor_in_the_place_of_a_description_is_a_traceback(weights, tmp_path, tensor):
    save_file(weights | {"iter_config": tensor}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="net.safetensors has a damaged iter_config"):
        load_pretrained(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("refiner", "swin", "heads"), 0, "refiner.swin.heads=0 must be a whole number >= 1"),
        (("vqgan", "multipliers"), [], r"vqgan.multipliers=\[\] must be a list"),
        (("vqgan", "base_channels"), -8, "vqgan.base_channels=-8 must be a whole number >= 1"),
        (("vqgan", "base_channels"), 10**6, "does not fit ITER"),
    ],
)
def test_the_command_refuses_it_in_one_line(weights, tmp_path, capsys, where, value, message):
    path = tmp_path / "net.safetensors"
    save_file(weights, path, {"iter_config": json.dumps(changed(where, value))})
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in/a.png")
    assert (
        commands.main(["upscale", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(path)]) == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)
