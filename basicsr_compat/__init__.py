"""What BasicSR 1.4.2 needs on today's stack; the only place that patches it.

Importing this package repairs what does not run (`repairs.py`), and imports neither BasicSR nor torch.
`install_pipeline` changes how BasicSR trains and tests; only the `basicsr` command calls it.
"""

from basicsr_compat.patching import register, when_imported
from basicsr_compat.repairs import repair

__all__ = ["install_pipeline", "register", "repair", "when_imported"]


def install_pipeline() -> None:
    """Let BasicSR's pipelines run as the `basicsr` command promises: options, folders, checkpoints, stops, logging."""
    from basicsr_compat import replaced

    replaced.install()


repair()
