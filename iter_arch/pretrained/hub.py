"""ITER (arXiv:2312.05616) on Hugging Face's hub, with huggingface_hub's mixin; needs `pip install 'iter-sr[hub]'`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download

from iter_arch.iter_arch import ITER
from iter_arch.pretrained.checkpoint import load_pretrained, save_pretrained

WEIGHTS_FILE = "model.safetensors"
CARD = Path(__file__).with_name("model_card.md")


class HubITER(
    ITER,
    ModelHubMixin,
    library_name="iter-sr",
    pipeline_tag="image-to-image",
    tags=["super-resolution", "image-restoration"],
    paper_url="https://arxiv.org/abs/2312.05616",
    model_card_template=CARD.read_text(encoding="utf-8"),
):
    """An `ITER` with ``from_pretrained``, ``save_pretrained``, and ``push_to_hub``.

    A repository holds a model card and ``model.safetensors``, a file of `iter_arch.save_pretrained`, which
    ``hf:owner/repo/model.safetensors`` names as well.

    Examples:
        >>> net = HubITER.from_checkpoint("experiments/train_iter/models/iter_latest.safetensors")
        >>> net.push_to_hub("me/my-iter")
        >>> net = HubITER.from_pretrained("me/my-iter")
    """

    @classmethod
    def from_checkpoint(cls, name: str | Path) -> HubITER:
        """As `iter_arch.load_pretrained`, in eval mode, ready for ``push_to_hub``."""
        net = load_pretrained(name)
        hub_net = cls(**net.config | {"sampling": dataclasses.asdict(net.sampling)})
        hub_net.load_state_dict(net.state_dict())
        return hub_net.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        save_pretrained(self, save_directory / WEIGHTS_FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None = None, **options: Any) -> HubITER:
        file = Path(model_id) / WEIGHTS_FILE
        if not Path(model_id).is_dir():
            known = ("cache_dir", "force_download", "local_files_only", "token")
            options = {name: options[name] for name in known if name in options}
            file = Path(hf_hub_download(model_id, WEIGHTS_FILE, revision=revision, **options))
        return cls.from_checkpoint(file)
