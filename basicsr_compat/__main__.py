"""`python -m basicsr_compat`: the table of repairs."""

from basicsr_compat.repairs import REPAIRS

for _repair in REPAIRS:
    _replacement = getattr(_repair.replacement, "__name__", _repair.replacement)
    print(f"{_repair.target}\n    {'replaced' if _repair.is_needed() else 'not broken here'}: {_repair.reason}")
    print(f"    replacement: {_replacement}")
