"""The nodes for ComfyUI: its protocol, and what they compute. ComfyUI itself is in no package of PyPI."""

import ast
import importlib.util
import inspect
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from small_networks import photo, small_iter

import iter_arch
from iter_arch import SamplingConfig
from iter_arch.color import match_color

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"
# Types of ComfyUI that are widgets, and the Python type of their values.
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def load_as_comfyui(folder: Path, name: str) -> types.ModuleType:
    """As ComfyUI's `load_custom_node` does it: a package under the folder's path."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    copy = tmp_path_factory.mktemp("custom_nodes") / "iter"
    shutil.copytree(FOLDER, copy)
    name = "custom_nodes_iter_of_a_test"
    yield load_as_comfyui(copy, name).NODE_CLASS_MAPPINGS
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def defaults(node) -> dict:
    """What its widgets hold before a user changes them."""
    values = {}
    for inputs in node.INPUT_TYPES().values():
        for name, (kind, *options) in inputs.items():
            if isinstance(kind, list):
                values[name] = options[0].get("default", kind[0]) if options else kind[0]
            elif kind in WIDGETS:
                values[name] = options[0]["default"]
    return values


def restored(nodes, net, image, **inputs):
    node = nodes["RestoreITER"]
    values = defaults(node) | {"tile": 0, "samples": 0} | inputs
    return getattr(node(), node.FUNCTION)(model=net, image=image, **values)


def image_of(lq):
    return lq.movedim(1, -1).contiguous()


@pytest.mark.parametrize("name", ["LoadITER", "RestoreITER"])
def test_a_node_has_what_the_protocol_asks_for(nodes, name):
    node = nodes[name]
    inputs = node.INPUT_TYPES()
    assert {"required"} <= set(inputs) <= {"required", "optional", "hidden"}
    assert isinstance(node.CATEGORY, str) and isinstance(node.RETURN_TYPES, tuple)
    assert len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
    parameters = dict(inspect.signature(getattr(node, node.FUNCTION)).parameters)
    parameters.pop("self")
    assert set(parameters) == set(inputs["required"]) | set(inputs.get("optional", {}))
    needed = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    assert needed == set(inputs["required"])
    for kind, *options in [one for section in inputs.values() for one in section.values()]:
        assert isinstance(kind, list | str) and len(options) <= 1
        if isinstance(kind, str) and kind in WIDGETS:
            value = options[0]["default"]
            assert isinstance(value, (WIDGETS[kind], int))
            if kind in ("INT", "FLOAT"):
                assert options[0]["min"] <= value <= options[0]["max"]


def test_both_nodes_fit_together(nodes):
    assert nodes["LoadITER"].RETURN_TYPES == ("ITER_MODEL",)
    assert nodes["RestoreITER"].INPUT_TYPES()["required"]["model"][0] == "ITER_MODEL"
    assert nodes["RestoreITER"].RETURN_TYPES == ("IMAGE", "MASK")


def test_of_ours_iter_arch_alone_is_imported():
    names = set()
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"torch", "iter_arch"}


def test_shipped_weights_are_loaded_by_name_and_files_by_path(nodes, tmp_path):
    node = nodes["LoadITER"]
    values = defaults(node) | {"device": "cpu"}
    (net,) = getattr(node(), node.FUNCTION)(**values)
    assert isinstance(net, iter_arch.ITER) and not net.training
    iter_arch.save_pretrained(small_iter(2), tmp_path / "mine.safetensors")
    assert getattr(node(), node.FUNCTION)(**values | {"file": f" {tmp_path}/mine.safetensors"})[0].scale == 2


def test_an_image_is_what_restore_and_color_correction_make_of_it(nodes):
    net, lq = small_iter(), photo(2, 3, 21, 30)
    image, mask = restored(nodes, net, image_of(lq), seed=3, alpha=0.7, steps=4)
    assert image.shape == (2, 84, 120, 3) and image.dtype == torch.float32 and mask.shape == (2, 84, 120)
    config = SamplingConfig(alpha=0.7, steps=4)
    for i in range(2):
        one = lq[i : i + 1]
        expected = match_color(net.restore(one, config=config, seed=3).image, one)
        assert torch.allclose(image[i], image_of(expected)[0], atol=1e-6)
    assert mask.max() == 0


def test_what_is_left_alone_is_as_the_weights_say(nodes):
    net, lq = small_iter(), photo(1, 3, 16, 16)
    net.sampling = SamplingConfig(alpha=0.9, steps=3, fidelity=0.3)
    image, _ = restored(nodes, net, image_of(lq), color_correction="none")
    assert torch.equal(image, image_of(net(lq)))


def test_the_mask_is_the_deviation_over_seeds(nodes):
    net, lq = small_iter(), photo(2, 3, 16, 24)
    _, mask = restored(nodes, net, image_of(lq), alpha=0.8, samples=3, seed=2)
    for i in range(2):
        config = SamplingConfig(alpha=0.8)
        found = iter_arch.uncertainty(net, lq[i : i + 1], 3, 2, config=config, color_correction="wavelet")
        assert torch.allclose(mask[i], 2 * found.std[0, 0], atol=1e-5)
    assert 0 < mask.max() <= 1


def test_an_alpha_map_counts_in_the_place_of_alpha(nodes):
    net, lq = small_iter(), photo(2, 3, 16, 24)
    constant, _ = restored(nodes, net, image_of(lq), alpha=0.1, alpha_map=torch.full((1, 7, 9), 0.8))
    assert torch.equal(constant, restored(nodes, net, image_of(lq), alpha=0.8)[0])
    each = torch.tensor([0.0, 0.8]).view(2, 1, 1)
    both, _ = restored(nodes, net, image_of(lq), alpha_map=each)
    assert torch.equal(both[1], constant[1]) and not torch.equal(both[0], constant[0])
    with pytest.raises(ValueError, match="alpha_map has shape \\(3, 4, 4\\); it must be \\(2 or 1, height, width\\)"):
        restored(nodes, net, image_of(lq), alpha_map=torch.zeros(3, 4, 4))


def test_what_other_nodes_overshoot_is_clamped(nodes):
    net, lq = small_iter(), photo(1, 3, 12, 16)
    wide = 3 * lq - 1
    found, _ = restored(nodes, net, image_of(wide), alpha_map=torch.full((1, 4, 4), 1.2))
    expected, _ = restored(nodes, net, image_of(wide.clamp(0, 1)), alpha_map=torch.ones(1, 4, 4))
    assert torch.equal(found, expected)


def test_tiles_sample_one_token_map(nodes, monkeypatch):
    net, lq, grids = small_iter(), photo(1, 3, 48, 48), []
    restore = net.restore
    monkeypatch.setattr(net, "restore", lambda *a, **k: grids.append(restore(*a, **k)) or grids[-1])
    image, _ = restored(nodes, net, image_of(lq), tile=16, color_correction="none")
    assert grids[0].tokens.shape == (1, 24, 24)
    assert torch.equal(image, image_of(restore(lq, tile=16).image))


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_alpha_channels_are_taken(nodes, channels):
    net, image = small_iter(), torch.rand(1, 16, 16, channels)
    rgb = image[..., : min(channels, 3)].expand(-1, -1, -1, 3)
    assert torch.equal(restored(nodes, net, image)[0], restored(nodes, net, rgb)[0])


def test_comfyuis_bar_moves_and_its_stop_ends_the_restoration(nodes, monkeypatch):
    told, utilities, management = [], types.ModuleType("comfy.utils"), types.ModuleType("comfy.model_management")
    utilities.ProgressBar = lambda total: types.SimpleNamespace(
        update_absolute=lambda value: told.append(value / total)
    )
    management.throw_exception_if_processing_interrupted = lambda: None
    monkeypatch.setitem(sys.modules, "comfy.utils", utilities)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    net, image = small_iter(), torch.rand(2, 16, 16, 3)
    restored(nodes, net, image, samples=2)
    assert told == sorted(told) and told[-1] == 1 and len(set(told)) > 4

    class Interrupted(Exception):
        pass

    def stop():
        raise Interrupted

    management.throw_exception_if_processing_interrupted = stop
    with pytest.raises(Interrupted):
        restored(nodes, net, image)
