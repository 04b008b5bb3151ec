"""Parts of released checkpoints, and what is equal to what."""

import torch


def without(state, *prefixes):
    """A state dict without the keys that begin so."""
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def only_vqgan(theirs):
    """What ITER_swinvqgan.pth holds."""
    return {key.removeprefix("vqgan."): value for key, value in theirs.items() if key.startswith("vqgan.")}


def same(a, b):
    """Whether two state dicts are equal bit for bit, in keys, values and dtypes."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def equal_weights(a, b):
    """Whether two networks have the `same` weights."""
    return same(a.state_dict(), b.state_dict())
