"""What BasicSR 1.4.2 needs on today's stack; the only place that patches it."""

from basicsr_compat import replaced  # noqa: F401
