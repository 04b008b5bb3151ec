"""`basicsr convert`: the authors' released checkpoints to our safetensors and back, bit for bit (arXiv:2312.05616)."""

from __future__ import annotations

import argparse
from pathlib import Path

from iter_model.commands import usage_error

DESCRIPTION = "Convert a checkpoint of the authors' release to our format, or back, depending on IN."
EPILOG = """\
Converts the authors' ITER_x4.pth, ITER_x2.pth, or ITER_swinvqgan.pth to our format, OUT.safetensors, which also holds
the architecture. Converts our files back to OUT.pth, which the authors' code loads. For that, the networks must have
the released form, that is, come from converted weights. Weights stay the same bit for bit. Entries without information
are dropped and rebuilt on the way back: generator.* (an alias of the decoder), relative_position_index, attn_mask.

examples:
  basicsr convert ITER_x4.pth iter_x4.safetensors
  basicsr convert ITER_x4.pth iter_x4.safetensors --vqgan ITER_swinvqgan.pth
  basicsr convert experiments/my_iter/models/iter_latest.safetensors my_iter.pth

Exit status: 0 converted; 2 not converted, nothing written.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `basicsr convert`."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("input", metavar="IN", help="checkpoint: a file, released_x4 or released_x2")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="file to write, .safetensors for ours, .pth for theirs"
    )
    parser.add_argument(
        "--vqgan", metavar="FILE", help="take the VQGAN from this checkpoint (IN has none, or to replace it)"
    )


def run(args: argparse.Namespace) -> int:
    """Convert ``args.input`` to ``args.output``; returns the exit code, 0 or 2."""
    try:
        print(convert(args.input, args.output, args.vqgan))
    except (ValueError, OSError) as error:
        return usage_error("convert", error)
    return 0


def convert(source: str | Path, target: Path, vqgan: str | Path | None = None) -> str:
    """Convert a released checkpoint to ours, or ours to a released one.

    Args:
        source: a path, or a name known to `find_checkpoint`.
        target: file to write; an older one is replaced.
        vqgan: checkpoint to take the VQGAN from.

    Returns:
        What was done, in a sentence.

    Raises:
        FileNotFoundError: no such file.
        ValueError: ``source`` is damaged or of another kind, or ``target`` has the wrong suffix.
    """
    from basicsr_compat.files import atomic_save
    from iter_arch.pretrained.checkpoint import add_vqgan, read_file, whole_checkpoint, write_safetensors
    from iter_arch.pretrained.download import find_checkpoint
    from iter_arch.pretrained.released import from_released, is_released, to_released

    path = find_checkpoint(source)
    state = read_file(path).state
    theirs = is_released(state)
    _check_target(target, path, theirs)
    try:
        state = from_released(state) if theirs else state
        if vqgan is not None:
            if "lq_encoder.head.weight" not in state:
                raise ValueError("it holds nothing but a VQGAN, and --vqgan names another")
            state = add_vqgan(state, vqgan)
        if theirs:
            write_safetensors(whole_checkpoint(state), target)
        else:
            atomic_save({"params": to_released(state)}, target)
    except ValueError as error:
        raise ValueError(f"{path} cannot be converted: {error}") from None
    return f"converted {path} ({'released' if theirs else 'ours'}, {len(state)} weights) to {target}"


def _check_target(target: Path, source: Path, theirs: bool) -> None:
    suffix = ".safetensors" if theirs else ".pth"
    if target.suffix != suffix:
        kind = "a released checkpoint and becomes one of ours" if theirs else "one of ours and becomes a released one"
        raise ValueError(f"OUT {target} must end in {suffix}: {source} is {kind}")
    if target.exists() and target.samefile(source):
        raise ValueError(f"OUT {target} is IN itself; name another file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"OUT {target}: there is no folder {target.parent}")
