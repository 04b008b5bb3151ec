"""Our networks against the authors' released ones (release v0.1.0) that hold the same weights.

released/keys_*.txt lists the keys of the released files with shapes and dtypes, released/golden_*.npz holds what their
networks gave, in float32 on a CPU, with the weights of `stand_in` instead of the trained ones.
"""

import functools
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import iter_arch
from iter_arch.pretrained.released import DERIVED, from_released, to_released

HERE = Path(__file__).parent / "released"

# Largest difference of each array, relative to the largest magnitude of the golden one.
TOLERANCES = {
    "vqgan_latent": 2e-4,
    "vqgan_reconstruction": 2e-4,
    "decoded_S_l": 2e-4,
    "lq_logits": 2e-4,
    "evaluator_logits": 2e-4,
    "refiner_logits": 2e-4,
    # Difference of squared distances, relative to the larger, within which two codes are equally near.
    "tie": 1e-4,
}


@functools.cache
def values(name, shape):
    """The weights of one tensor, which depend on its name and shape alone."""
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("relative_position_bias_table"):
        draws = 0.2 * draws
    elif len(shape) == 1:
        draws = 1 + 0.1 * draws if name.endswith(".weight") else 0.1 * draws
    elif not name.endswith("embedding.weight"):
        draws = (draws.astype(np.float64) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return torch.from_numpy(draws)


def listed(name):
    """(key, shape, dtype) of every tensor of a released file."""
    for line in (HERE / f"keys_ITER_{name}.txt").read_text().splitlines():
        key, shape, dtype = line.split("\t")
        yield key, tuple(map(int, shape.split("x"))), getattr(torch, dtype)


def stand_in(name):
    """The state dict of a released file with other weights; derived buffers are zero, as nothing may depend on them."""
    return {
        key: torch.zeros(shape, dtype=dtype)
        if key.endswith(DERIVED)
        else values(key.replace("generator.", "decoder."), shape)
        for key, shape, dtype in listed(name)
    }


@pytest.fixture(scope="module", params=["x4", "x2"])
def released(request):
    """(network with the stand-in's weights, golden arrays, what the network gives for their inputs)."""
    net = iter_arch.load_released({"params": stand_in(request.param)})
    assert net.scale == int(request.param[1:]) and not net.training
    golden = {name: torch.from_numpy(array) for name, array in np.load(HERE / f"golden_{request.param}.npz").items()}
    S_l, S_t = golden["S_l"].long(), golden["S_t"].long()
    m_l, m_t = golden["m_l"].bool(), golden["m_t"].bool()
    with torch.no_grad():
        encoded = net.vqgan.encode(golden["hq"])
        given = {
            "vqgan_latent": encoded.latent,
            "vqgan_indices": encoded.tokens,
            "vqgan_reconstruction": net.vqgan(golden["hq"]).image,
            "decoded_S_l": net.vqgan.decode(S_l),
            "lq_logits": net.lq_encoder(golden["lq"]),
            "evaluator_logits": net.evaluator(S_t, S_l),
            "refiner_logits": net.refiner(S_t, m_t, S_l, m_l),
        }
    return net, golden, given


@pytest.mark.parametrize("array", [name for name in TOLERANCES if name != "tie"])
def test_outputs_are_those_of_the_released_networks(released, array):
    _, golden, given = released
    assert given[array].dtype == torch.float32 and given[array].shape == golden[array].shape
    difference = (given[array] - golden[array]).abs().max() / golden[array].abs().max()
    assert difference <= TOLERANCES[array]


def test_tokens_are_those_of_the_released_networks(released):
    net, golden, given = released
    tokens, expected = given["vqgan_indices"], golden["vqgan_indices"].long()
    latent = golden["vqgan_latent"].double()
    distances = [(net.vqgan.quantizer.codes(x).double() - latent).square().sum(1) for x in (tokens, expected)]
    is_tie = (distances[0] - distances[1]).abs() <= TOLERANCES["tie"] * torch.maximum(*distances)
    assert ((tokens == expected) | is_tie).all()
    assert (tokens == expected).float().mean() > 0.99


@pytest.mark.parametrize("name", ["x4", "x2", "swinvqgan"])
def test_every_key_of_the_released_files_is_converted_exactly_both_ways(name):
    generator = torch.Generator().manual_seed(0)
    theirs = {}
    for key, shape, dtype in listed(name):
        alias = key.replace("generator.", "decoder.")
        theirs[key] = theirs.get(alias, torch.empty(shape).uniform_(generator=generator).to(dtype))
    back = to_released(from_released(theirs))
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert back[key].shape == value.shape and back[key].dtype == value.dtype, key
        assert key.endswith(DERIVED) or torch.equal(back[key], value), key
