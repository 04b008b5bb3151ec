"""What schema.py says of errors; its checks of options are in test_options_of_our_models.py."""

import pytest

from basicsr_compat.schema import Count, OptionProblems, format_error, read_section


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("alpha=2 must be in [0, 1]"), "alpha=2 must be in [0, 1]"),
        (ValueError(), "ValueError"),
        (KeyError("scale"), "KeyError: 'scale'"),
        (KeyError("no object named 'X' in the 'arch' registry"), "no object named 'X' in the 'arch' registry"),
        (TypeError("EDSR.__init__() missing 1 argument"), "TypeError: EDSR.__init__() missing 1 argument"),
        (RuntimeError("Weights only load failed.\n\tDo something dangerous"), "Weights only load failed."),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "[Errno 2] No such file or directory: 'a.png'"),
        (OptionProblems(["a=1 must be 2", "b is not an option"]), "a=1 must be 2; b is not an option"),
        (
            ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):"
                       '\n  File "x", line 1\nValueError: a.png is too small\n'),
            "a.png is too small",
        ),
    ],
)  # fmt: skip
def test_an_error_is_one_line(error, line):
    assert format_error(error) == line


def test_a_long_error_is_cut():
    assert len(format_error(ValueError("x" * 10_000))) == 500


def test_option_problems_survive_the_way_out_of_a_worker():
    """PyTorch makes the exception anew, of one text."""
    assert OptionProblems("Caught it\nOriginal Traceback").problems == ("Caught it\nOriginal Traceback",)


def test_a_section_is_refused_with_every_problem_in_it():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Section:
        steps: Count
        tile: Count = 1

    with pytest.raises(OptionProblems) as caught:
        read_section(Section, {"steps": 0, "tiles": 3}, "val")
    assert len(caught.value.problems) == 2 and caught.value.problems[0] == "val.steps=0 must be a whole number >= 1"
