"""Tier 2: the base of `basicsr train`, `test`, and `check`, which host projects do not get."""


def install_pipeline() -> None:
    """Give all models of BasicSR what the `basicsr` command promises; calling it again does nothing.

    Atomic checkpoints, exact resumes, the names of unreadable images, files in the order of their names, and errors
    with a remedy: `replacements.py` lists them.
    """
    from basicsr_compat.pipeline.replacements import REPLACEMENTS

    for one in REPLACEMENTS:
        one.arm()
