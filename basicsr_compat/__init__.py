"""Makes BasicSR 1.4.2 run with current PyTorch, NumPy, and OpenCV; the only place that patches it.

Importing this package repairs what does not run (`repairs.py`). It imports neither BasicSR nor torch.
`install_pipeline` changes how BasicSR's models train and test; only the `basicsr` command calls it.
"""

from basicsr_compat.patching import register, registered, when_imported
from basicsr_compat.repairs import repair

__all__ = ["install_pipeline", "register", "registered", "repair", "when_imported"]


def install_pipeline() -> None:
    """Give all models of BasicSR what the `basicsr` command promises: atomic checkpoints, exact resumes, clear errors.

    Calling it again does nothing. The loops of the command are separate functions in `basicsr_compat.pipeline.loop`.
    """
    from basicsr_compat import pipeline

    pipeline.install_pipeline()


repair()
