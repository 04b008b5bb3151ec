"""The architecture of an ITER as read from the keys and shapes of its weights."""

from pathlib import Path

import pytest
import torch
import yaml
from small_networks import RELEASED_FORM, config

from basicsr_compat.files import state_difference
from iter_arch import ITER, SamplingConfig
from iter_arch.pretrained.infer import infer_config
from iter_arch.pretrained.released import DERIVED, from_released

ROOT = Path(__file__).parents[2]
PARTS = ("vqgan", "lq_encoder", "refiner", "evaluator")


def on_meta(options):
    """The state dict of an ITER, without memory."""
    with torch.device("meta"):
        return ITER(**options).state_dict()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("form", [{}, {"gate": True}, {"residual_groups": True}, RELEASED_FORM | {"groups": 3}])
def test_every_form_and_scale_is_found(scale, form):
    given = config(scale, **form)
    found = infer_config(on_meta(given))
    assert found["scale"] == scale
    for part in PARTS:
        for name, value in given[part].items():
            found_value = found[part][name]
            for key, one in value.items() if isinstance(value, dict) else [(None, value)]:
                assert (found_value if key is None else found_value[key]) == one, (part, name, key)
    assert on_meta(found).keys() == on_meta(given).keys()


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("vqgan", {"base_channels": 16, "multipliers": [1, 3, 1, 2], "res_blocks": 3}),
        ("vqgan", {"quantizer": {"num_codes": 40, "dim": 12}, "swin": {"dim": 24, "depth": 3, "heads": 3}}),
        ("lq_encoder", {"stem_channels": 12, "res_blocks": 3, "swin": {"dim": 24, "depth": 3, "heads": 4}}),
        ("refiner", {"swin": {"dim": 24, "depth": 5, "heads": 6, "mlp_ratio": 2.7}}),
        # 28 * (61 / 28) < 61 in floating point
        ("refiner", {"swin": {"dim": 28, "depth": 2, "heads": 2, "mlp_ratio": 61.5 / 28}}),
        ("evaluator", {"swin": {"dim": 8, "depth": 1, "heads": 2, "mlp_ratio": 0.5, "groups": 4}}),
    ],
)
def test_every_number_is_found(part, changes):
    given = config()
    given[part] = given[part] | changes
    found = infer_config(on_meta(given))
    for name, value in given[part].items():
        for key, one in value.items() if isinstance(value, dict) else [(None, value)]:
            of_file = found[part][name] if key is None else found[part][name][key]
            assert of_file == pytest.approx(one, rel=0.1 if key == "mlp_ratio" else 0), (name, key)
    assert state_difference(on_meta(given), on_meta(found)) == []


@pytest.mark.parametrize("window", [2, 4, 7])
def test_the_window_is_found(window):
    given = config(window=window)
    assert all(infer_config(on_meta(given))[part]["swin"]["window"] == window for part in PARTS)


@pytest.mark.parametrize("key", ["vqgan.encoder.0.weight", "refiner.swin.groups.0.blocks.0.mlp.fc1.weight"])
def test_what_is_missing_is_named(key):
    state = on_meta(config())
    del state[key]
    with pytest.raises(ValueError, match=f"^{key} is missing"):
        infer_config(state)


@pytest.mark.parametrize("name", ["x4", "x2"])
def test_the_options_describe_the_released_networks(name):
    """options/test_released_*.yml have the architecture of the released files, and their sampling."""
    options = yaml.safe_load((ROOT / f"options/test_released_{name}.yml").read_text(encoding="utf-8"))
    keys = ROOT / f"tests/parity/released/keys_ITER_{name}.txt"
    theirs = {}
    for line in keys.read_text().splitlines():
        key, shape, _ = line.split("\t")
        if not key.endswith(DERIVED) and "generator." not in key:
            theirs[key] = torch.empty([int(size) for size in shape.split("x")], device="meta")
    network = options["network_g"]
    assert network.pop("type") == "ITER" and network["scale"] == options["scale"] == int(name[1:])
    assert state_difference(from_released(theirs), on_meta(network)) == []
    assert on_meta(network).keys() == from_released(theirs).keys()
    assert SamplingConfig(**options["val"]["sampling"]) == SamplingConfig.released()
    assert options["path"]["pretrain_network_g"] == f"released_{name}"
