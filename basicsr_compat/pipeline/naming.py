"""Errors of constructors, with the name of the section of the options that the constructor got."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from basicsr_compat.schema import OptionProblems, format_error

_NAMED = re.compile(r"(datasets|path|train|val|network_\w+|logger|dist_params)[.=]\w")


@contextlib.contextmanager
def naming(where: str, section: Mapping[str, Any]) -> Iterator[None]:
    """Turn an error of a constructor about its options into an OptionProblems that names their section.

    Any other error is a fault of the program and is raised unchanged.

    Raises:
        OptionProblems: instead of a ValueError, an OSError, an assertion with a text, an unknown or missing argument,
            or a KeyError for an option that the section lacks.
    """
    try:
        yield
    except OptionProblems:
        raise
    except (ValueError, OSError, NotImplementedError) as error:
        text = format_error(error)
        # What is said of an option by its name needs no more.
        raise OptionProblems(text if _NAMED.match(text) else f"{where}: {text}") from error
    except AssertionError as error:
        if not str(error):
            raise
        raise OptionProblems(f"{where}: {format_error(error)}") from error
    except KeyError as error:
        key = error.args[0] if error.args else None
        if isinstance(key, str) and " " in key:  # a sentence of a registry
            raise OptionProblems(f"{where}: {key}") from error
        if not isinstance(key, str) or key in section:
            raise
        raise OptionProblems(f"{where}: the options lack {key!r}") from error
    except TypeError as error:
        if "__init__() got an unexpected" not in str(error) and "__init__() missing" not in str(error):
            raise
        raise OptionProblems(f"{where}: {error}") from error
