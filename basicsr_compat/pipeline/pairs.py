"""Pairs of LQ and GT images in two folders: names files without a partner, and the option that would help."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps

_SHOWN = 3


def naming_partners(pair: Callable[..., list[dict[str, str]]]) -> Callable[..., list[dict[str, str]]]:
    """Wrap basicsr.data.data_util.paired_paths_from_folder so that its error names files without a partner."""

    @wraps(pair)
    def paired_paths_from_folder(folders, keys, filename_tmpl):
        from basicsr.data.data_util import scandir

        inputs, targets = (sorted(scandir(folder)) for folder in folders)
        problem = partner_problem(folders, keys, inputs, targets, filename_tmpl)
        if problem:
            raise ValueError(problem)
        return pair(folders, keys, filename_tmpl)

    return paired_paths_from_folder


def partner_problem(
    folders: Sequence[str], keys: Sequence[str], inputs: list[str], targets: list[str], template: str
) -> str | None:
    """Say which files of two folders have no partner; None where all have one.

    Args:
        folders, keys: of the inputs (lq) and of the targets (gt).
        inputs, targets: the names of the files.
        template: of the name of the input of a target, without its suffix: '{}x4'.
    """
    expected = {_input_name(target, template): target for target in targets}
    lonely_targets = [expected[name] for name in expected if name not in set(inputs)]
    lonely_inputs = [name for name in inputs if name not in expected]
    if not lonely_targets and not lonely_inputs:
        return None
    (input_key, target_key), (input_folder, target_folder) = keys, folders
    said = [
        f"dataroot_{key}={str(folder)!r} has {len(names)} files, of which {len(lonely)} have no partner"
        + (f" ({_first(lonely)})" if lonely else "")
        for key, folder, names, lonely in (
            (target_key, target_folder, targets, lonely_targets),
            (input_key, input_folder, inputs, lonely_inputs),
        )
    ]
    return f"{'; '.join(said)}; {_remedy(lonely_targets, lonely_inputs, template)}"


def _input_name(target: str, template: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(target))
    return f"{template.format(stem)}{suffix}"


def _first(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _remedy(targets: list[str], inputs: list[str], template: str) -> str:
    """How to make pairs of the files: another template, the same kind of file, or removing some."""
    templates: Counter[str] = Counter()
    stems = {os.path.splitext(name)[0]: os.path.splitext(name)[1] for name in inputs}
    for target in targets:
        stem, suffix = os.path.splitext(os.path.basename(target))
        other = next((name for name in stems if stem and stem in name), None)
        if other is None:
            continue
        if other == template.format(stem):
            return f"both files of a pair must have the same extension, and {stem!r} has {suffix} and {stems[other]}"
        before, _, behind = other.partition(stem)
        if "{" not in before + behind:
            templates[f"{before}{{}}{behind}"] += 1
    if templates:
        best = templates.most_common(1)[0][0]
        return f"the names differ: set filename_tmpl: '{best}' (it is '{template}')"
    return "take them out, or add their partners"
