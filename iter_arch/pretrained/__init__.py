"""Weights of whole ITERs: names, files, downloads, and the authors' release (arXiv:2312.05616)."""

from iter_arch.pretrained.checkpoint import load_pretrained, load_released, save_pretrained
from iter_arch.pretrained.download import shipped

__all__ = ["load_pretrained", "load_released", "save_pretrained", "shipped"]
