"""Tier 2: what `basicsr train`, `test` and `check` run on, beyond what a host project meets."""


def install_pipeline() -> None:
    """Give every model of BasicSR what the `basicsr` command promises; calling it again does nothing.

    Whole checkpoints and exact resumes, images that are named where they cannot be read, files in the order of their
    names, and errors that say what to do: `replacements.py` lists them.
    """
    from basicsr_compat.pipeline.replacements import REPLACEMENTS

    for one in REPLACEMENTS:
        one.arm()
