"""Checks options against their declarations: the fields of dataclasses and the arguments of constructors.

Lists every problem of types and ranges. Patches nothing, and knows no option by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import reprlib
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

__all__ = [
    "Count",
    "Declared",
    "KeyOf",
    "Layers",
    "Natural",
    "OneOf",
    "OptionProblems",
    "OptionsOf",
    "Positive",
    "Probability",
    "Rule",
    "Weight",
    "declared",
    "describe",
    "problems_in",
    "nearest",
    "read_section",
    "requires",
    "section_problems",
    "format_error",
    "format_value",
    "format_key",
]


class OptionProblems(ValueError):
    """Problems that the user has to fix before a run can begin; one line per problem.

    `basicsr` prints these lines without a traceback.
    """

    def __init__(self, problems: str | Collection[str]) -> None:
        # One text: as a DataLoader's worker passes on what it raised.
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class Rule(NamedTuple):
    """A condition on a value besides its type. text: continues `a whole number ...` in messages."""

    text: str
    holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, as what an annotation holds must be hashable
class KeyOf:
    """A rule: the value is a key of a table that may grow."""

    table: Mapping[str, Any]

    @property
    def text(self) -> str:
        """See `Rule`."""
        return f"one of {', '.join(self.table)}"

    def holds(self, value: Any) -> bool:
        """See `Rule`."""
        return value in self.table


class OptionsOf(NamedTuple):
    """A section whose keys are the fields of a dataclass or the arguments of a function, except `without`."""

    declaration: Callable[..., Any]
    without: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, as what an annotation holds must be hashable
class OneOf:
    """A section whose `type` chooses among declarations, and whose other keys are those of the one chosen.

    find: name -> the declaration, or None where there is none of this name.
    names: () -> all names, for hints about misspelled ones.
    kind: the noun for one of them, e.g. 'registered loss'.
    without: arguments that the program passes, not the section.
    also: further keys of the section, with their annotations, which other code reads.
    swallows: whether a declaration ignores its `**kwargs`.
    default: the name where the section has no `type`; None where it must have one.
    """

    kind: str
    find: Callable[[str], Callable[..., Any] | None]
    names: Callable[[], Collection[str]]
    without: tuple[str, ...] = ()
    also: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    swallows: Callable[[Callable[..., Any]], bool] = lambda declaration: False
    default: str | None = None


Natural = Annotated[int, Rule(">= 0", lambda value: value >= 0)]
Count = Annotated[int, Rule(">= 1", lambda value: value >= 1)]
# Modules are made one by one: a mistyped number would keep the machine busy for ever.
Layers = Annotated[int, Rule("from 1 to 100", lambda value: 1 <= value <= 100)]
Positive = Annotated[float, Rule("> 0", lambda value: value > 0)]
Weight = Annotated[float, Rule(">= 0", lambda value: value >= 0)]
Probability = Annotated[float, Rule("in [0, 1]", lambda value: 0 <= value <= 1)]


def nearest(word: object, known: Collection[object]) -> str:
    """The hint ` (did you mean 'x'?)` for a misspelled word, or '' where no known word is close."""
    close = difflib.get_close_matches(str(word), [str(item) for item in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


_REPR = reprlib.Repr()
_REPR.maxstring = 200  # a path is of use only whole


def format_value(value: object) -> str:
    """A value for messages: its repr on one line of at most 200 characters."""
    try:
        text = " ".join(_REPR.repr(value).split())
    except ValueError:  # Python refuses to write out a whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:197]}..."


def format_key(key: object) -> str:
    """A key for messages: without quotes where it is a short printable string."""
    return key if isinstance(key, str) and key.isprintable() and len(key) <= 80 else format_value(key)


def format_error(error: BaseException) -> str:
    """An error on one line, without the traceback of a DataLoader's worker.

    The line begins with the error's type where the message alone may not be understood.

    >>> format_error(KeyError("scale"))
    "KeyError: 'scale'"
    """
    name = type(error).__name__
    if isinstance(error, OptionProblems) and len(error.problems) > 1:
        return "; ".join(error.problems)
    text = str(error)
    if isinstance(error, KeyError) and error.args and " " in str(error.args[0]):
        text = str(error.args[0])  # a sentence, which str() would put into quotes
    elif not isinstance(error, ValueError | OSError | RuntimeError | AssertionError) and text:
        text = f"{name}: {text}"
    if "\nOriginal Traceback" in text:
        text = text.rpartition(f"\n{name}: ")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else name
    return line if len(line) <= 500 else f"{line[:497]}..."


def problems_in(value: Any, annotation: Any, where: str) -> Iterator[str]:
    """Say how `value` violates an annotation: one line per problem, with the field, the value and the rule.

    Checks numbers, strings, booleans, None, Literal, unions, lists, mappings, dataclasses, and Annotated with Rule,
    OptionsOf, or OneOf. Any other annotation accepts everything.
    """
    section = _section_of(annotation)
    if section is None:
        if not _fits(value, annotation):
            yield f"{where}={format_value(value)} must be {describe(annotation)}"
    elif value is None and _fits(None, annotation):
        return
    elif not isinstance(value, Mapping):
        yield f"{where}={format_value(value)} must be a section of options, `key: value`"
    elif isinstance(section, OneOf):
        yield from _typed_section_problems(value, section, where)
    elif isinstance(section, OptionsOf):
        yield from section_problems(value, section.declaration, where, without=section.without)
    else:  # sections under names of the user's own
        for key, item in value.items():
            yield from problems_in(item, section, f"{where}.{format_key(key)}")


def section_problems(
    section: Mapping[Any, Any],
    declaration: Callable[..., Any],
    where: str,
    *,
    without: Collection[str] = (),
    also: Mapping[str, Any] = types.MappingProxyType({}),
    swallows: bool = False,
) -> Iterator[str]:
    """Say which keys of a section are unknown or missing, and which values do not fit.

    Args:
        section: the section of the options.
        where: its name, '' for the whole of the options.
        declaration: a dataclass, or a function whose arguments the keys become.
        without: arguments that the program passes, not the section.
        also: further keys, with their annotations, which other code reads.
        swallows: whether the function ignores its `**kwargs`.
    """
    known, required, open_ended = declared(declaration)
    known = {key: annotation for key, annotation in known.items() if key not in without} | dict(also)
    prefix = f"{where}." if where else ""
    for key, value in section.items():
        if key in known:
            yield from problems_in(value, known[key], f"{prefix}{key}")
        elif swallows or not open_ended or not isinstance(key, str):
            hint = nearest(key, known) or f"; known: {', '.join(known)}"
            yield f"{prefix}{format_key(key)} is not an option{hint}"
    for key in known:
        if key in required and key not in section:
            yield f"{prefix}{key} is missing: it must be {describe(known[key])}"


def requires(declaration: Callable[..., Any], argument: str) -> bool:
    """Whether a function, or the constructor of a class, has a required argument of this name."""
    return argument in declared(declaration).required


def read_section(declaration: type, section: Mapping[str, Any], where: str) -> Any:
    """Make an object of a dataclass from a section of the options. Raises OptionProblems where it does not fit."""
    problems = list(section_problems(section, declaration, where))
    if problems:
        raise OptionProblems(problems)
    return declaration(**section)


def _typed_section_problems(section: Mapping[Any, Any], choice: OneOf, where: str) -> Iterator[str]:
    name = section.get("type", choice.default)
    if name is None and "type" not in section:
        yield f"{where} must be a section with a `type`, the name of a {choice.kind}"
        return
    declaration = choice.find(name) if isinstance(name, str) else None
    if declaration is None:
        yield f"{where}.type={format_value(name)} is not a {choice.kind}{nearest(name, choice.names())}"
        return
    also = {"type": str, **choice.also}
    yield from section_problems(
        section, declaration, where, without=choice.without, also=also, swallows=choice.swallows(declaration)
    )


class Declared(NamedTuple):
    """The options that a declaration takes.

    annotations: by name, in order.
    required: names without a default.
    open_ended: whether it takes any other name too.
    """

    annotations: dict[str, Any]
    required: set[str]
    open_ended: bool


@functools.cache
def declared(declaration: Callable[..., Any]) -> Declared:
    """The options that the fields of a dataclass, or the arguments of a function or constructor, declare.

    Includes those that `**kwargs: Annotated[..., OptionsOf(other)]` passes on. Do not change the result: it is cached.
    """
    function = declaration.__init__ if inspect.isclass(declaration) else declaration
    source = declaration if dataclasses.is_dataclass(declaration) else function
    try:
        hints = get_type_hints(source, include_extras=True)
    except (NameError, TypeError):  # of another package
        hints = {}
    known, required, open_ended = {}, set(), False
    for name, parameter in inspect.signature(declaration).parameters.items():
        if parameter.kind == parameter.VAR_POSITIONAL:
            continue
        annotation = hints.get(name, Any)
        if parameter.kind != parameter.VAR_KEYWORD:
            known[name] = annotation
            if parameter.default is parameter.empty:
                required.add(name)
            continue
        passed_on = _section_of(annotation)
        if isinstance(passed_on, OptionsOf):
            further, needed, open_ended = declared(passed_on.declaration)
            known |= {key: value for key, value in further.items() if key not in (*known, *passed_on.without)}
            required |= needed.difference(passed_on.without)
        else:
            open_ended = True
    return Declared(known, required, open_ended)


def _section_of(annotation: Any) -> Any:
    """The OptionsOf or OneOf of a section; of `dict[str, X]` the X, where that is one; else None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for found in map(_section_of, get_args(annotation)) if found is not None), None)
    if get_origin(annotation) is Annotated:
        return next((item for item in get_args(annotation)[1:] if isinstance(item, OptionsOf | OneOf)), None)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return OptionsOf(annotation)
    if get_origin(annotation) is dict and _section_of(get_args(annotation)[1]) is not None:
        return get_args(annotation)[1]
    return None


def _fits(value: Any, annotation: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        rules = [item for item in parts[1:] if isinstance(item, Rule | KeyOf)]
        return _fits(value, parts[0]) and all(rule.holds(value) for rule in rules)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is tuple:
        several = parts[1:] == (...,)
        return isinstance(value, list | tuple) and (
            all(_fits(item, parts[0]) for item in value)
            if several
            else len(value) == len(parts) and all(map(_fits, value, parts))
        )
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return isinstance(value, Mapping)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation is float:
        # of a number too large for a float isfinite is an OverflowError
        return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation) if annotation in (bool, str) else True


_DESCRIPTIONS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "~"}


def describe(annotation: Any) -> str:
    """What a value must be to fit an annotation, in words, for errors and the options page.

    >>> describe(Count | None)
    'a whole number >= 1 or ~'
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        table = next((item for item in parts[1:] if isinstance(item, KeyOf)), None)
        if table is not None:
            return table.text
        return " ".join([describe(parts[0]), *(item.text for item in parts[1:] if isinstance(item, Rule))])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin in (list, Sequence) or (origin is tuple and parts[1:] == (...,)):
        return f"a list ({describe(parts[0])} each)"
    if origin is tuple:
        return f"[{', '.join(describe(part) for part in parts)}]"
    if origin in (dict, Mapping) or annotation in (dict, Mapping) or dataclasses.is_dataclass(annotation):
        return "a section"
    return _DESCRIPTIONS.get(annotation, "set")
