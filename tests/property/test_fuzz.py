"""Damaged images and damaged option files, by the thousand: a result or one line, never a traceback, never a hang."""

import contextlib
import copy
import io
import signal
import sys
from pathlib import Path

import pytest
import yaml
from basicsr.data import build_dataset
from fuzz_seeds import CANVAS, canvases, encoded, hostile, originals, with_checksums
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_networks import small_iter

import iter_arch
from basicsr_compat.images import read_photo
from basicsr_compat.pipeline import loop
from basicsr_compat.pipeline.data import ReadableItems
from iter_model import commands

pytestmark = pytest.mark.long

# Of processor time for one example; and of a clock, of which a busy machine may make little.
SECONDS = 20
CLOCK = 300
# Larger images that decode, from an edited header say, need not be restored to know that they can be.
LARGEST_SIDE = 80


@contextlib.contextmanager
def within_seconds(limit=SECONDS):
    """Failure where the body takes longer than `limit`, or hangs."""

    def stop(number, frame):
        pytest.fail(f"more than {limit} s of processor time, or {CLOCK} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, limit), (signal.SIGALRM, signal.ITIMER_REAL, CLOCK))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def for_all(examples, **strategies):
    """Run a test for this many examples, the same ones every time."""
    # no shrinking, which may take longer than all examples
    unhurried = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    return lambda test: settings(max_examples=examples, derandomize=True, **unhurried)(given(**strategies)(test))()


def run(*words, limit=SECONDS):
    """Exit code and output of a command in this process; an exception that leaves it is the test's failure."""
    out, err = io.StringIO(), io.StringIO()
    with within_seconds(limit), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = commands.main([str(word) for word in words])
        except SystemExit as exit_:  # how argparse ends
            code = exit_.code
    return code, out.getvalue(), err.getvalue()


# Images


ORIGINALS = [*originals(), *hostile()]
GT, LQ = (encoded(Image.new("RGB", (side, side), (90, 60, 30)), "PNG") for side in (64, 16))
SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif", ".avif", ".jp2", ".ppm", ".txt", "")
SIZES = (0, 1, 2, 255, CANVAS, 65535, 20_000, 100_000, 2**31 - 1, 2**31, 2**32 - 1)
WHERE = st.floats(0, 1)
OUTPUTS = ((), ("--ext", "auto"), ("--ext", "auto", "--frames", "all"))
# What may be said of a photo that is restored.
REMARKS = ("(--frames all restores them all)", "does not hold it")


def flip(data, at, bits):
    out = bytearray(data)
    for bit in bits:
        if out:
            place = (int(at * len(out)) + bit // 3) % len(out)
            out[place] ^= 1 << bit % 8
    return bytes(out)


def edit_number(data, at, within, size, order, width):
    """Another number in the first bytes, where most formats have their sizes, or anywhere, where TIFF has its tags."""
    place = int(at * (64 if within == "header" else len(data)))
    return data[:place] + (size % 256**width).to_bytes(width, order) + data[place + width :]


def cut(data, start, end):
    start, end = sorted((int(start * len(data)), int(end * len(data))))
    return data[:start], data[start:end], data[end:]


mutations = st.one_of(
    st.builds(lambda part: lambda data: data[: int(part * len(data))], WHERE),
    st.builds(lambda at, bits: lambda data: flip(data, at, bits), WHERE, st.lists(st.integers(0, 400), max_size=8)),
    st.builds(
        lambda *edit: lambda data: edit_number(data, *edit),
        WHERE,
        st.sampled_from(("header", "file")),
        st.sampled_from(SIZES),
        st.sampled_from(("big", "little")),
        st.sampled_from((1, 2, 4)),
    ),
    st.builds(lambda a, b: lambda data: cut(data, a, b)[0] + cut(data, a, b)[2], WHERE, WHERE),
    st.builds(lambda a, b: lambda data: b"".join(cut(data, a, b)[i] for i in (0, 2, 1)), WHERE, WHERE),
    st.builds(lambda a, b: lambda data: b"".join(cut(data, a, b)[i] for i in (0, 1, 1, 2)), WHERE, WHERE),
    st.builds(lambda at, new: lambda data: new.join([*cut(data, at, at)[::2]]), WHERE, st.binary(max_size=64)),
    st.builds(
        lambda other, at: lambda data: cut(data, at, at)[0] + cut(other, at, at)[2], st.sampled_from(ORIGINALS), WHERE
    ),
    st.just(with_checksums),
)


@st.composite
def damaged_images(draw):
    data = draw(st.one_of(st.sampled_from(ORIGINALS), st.sampled_from(ORIGINALS), st.binary(max_size=200)))
    for mutate in draw(st.lists(mutations, max_size=4)):
        data = mutate(data)
    return with_checksums(data) if draw(st.booleans()) else data


MANY = pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "small.safetensors"
    iter_arch.save_pretrained(small_iter(), path)
    return path


@pytest.fixture
def restores_only_small(monkeypatch):
    restore = iter_arch.ITER.restore

    def restore_small(net, lq, **options):
        if max(lq.shape[2:]) > LARGEST_SIDE:
            raise MemoryError
        return restore(net, lq, **options)

    monkeypatch.setattr(iter_arch.ITER, "restore", restore_small)


@MANY
@pytest.mark.usefixtures("restores_only_small")
def test_upscale_restores_a_damaged_image_or_says_why_not(examples, weights, tmp_path):
    kinds = {0: 0, 1: 0}
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    @for_all(examples, data=damaged_images(), suffix=st.sampled_from(SUFFIXES), options=st.sampled_from(OUTPUTS))
    def check(data, suffix, options):
        path = folder / f"image{suffix}"
        path.write_bytes(data)
        words = ("--model", weights, "--steps", 1, "--device", "cpu", *options)
        code, _, err = run("upscale", "-i", path, "-o", out, *words)
        assert code in (0, 1)
        kinds[code] += 1
        results = list(out.iterdir())
        said = [line for line in err.splitlines() if not line.endswith(REMARKS)]
        if code:
            assert results == []
            assert len(said) == 1 and said[0].startswith("not restored: ") and str(path) in said[0]
        else:
            assert said == []
            height, width = read_photo(path).rgb.shape[:2]
            assert [result.stem for result in results] == ["image"]
            assert read_photo(results[0]).rgb.shape == (4 * height, 4 * width, 3)
            results[0].unlink()
        path.unlink()

    assert all(kinds.values())  # both happen


@pytest.mark.slow
@pytest.mark.usefixtures("restores_only_small")
@pytest.mark.parametrize("options", OUTPUTS[1:])
def test_a_canvas_just_under_the_limit_of_pixels_is_read_and_fails_in_one_line(options, weights, tmp_path):
    # WebP and GIF are whole, and their photos of 169 megapixels get as far as the network; the PNG lacks its rows.
    reasons = ("MemoryError", "MemoryError", "truncated")
    for data, reason in zip(canvases(13_000), reasons, strict=True):
        (tmp_path / "photo.png").write_bytes(data)
        words = ("--model", weights, "--steps", 1, "--device", "cpu", *options)
        code, _, err = run("upscale", "-i", tmp_path / "photo.png", "-o", tmp_path / "out", *words, limit=100)
        assert (code, list((tmp_path / "out").iterdir())) == (1, [])
        assert err.count("\n") == 1 and reason in err


@pytest.mark.parametrize("kind", ["PairedImageDataset", "SingleImageDataset", "SecondOrderDegradationDataset"])
@MANY
def test_a_damaged_image_of_a_test_set_is_an_item_or_left_out(examples, kind, tmp_path):
    for folder in ("lq", "gt"):
        (tmp_path / folder).mkdir()
    kinds = {False: 0, True: 0}

    @for_all(max(examples // 3, 1), data=damaged_images(), damages_lq=st.booleans())
    def check(data, damages_lq):
        (tmp_path / "gt/a.png").write_bytes(GT)
        (tmp_path / "lq/a.png").write_bytes(LQ)
        (tmp_path / ("lq" if damages_lq and kind == "PairedImageDataset" else "gt") / "a.png").write_bytes(data)
        roots = {"dataroot_gt": str(tmp_path / "gt"), "dataroot_lq": str(tmp_path / "lq")}
        if kind == "SingleImageDataset":
            roots = {"dataroot_lq": str(tmp_path / "gt")}
        elif kind == "SecondOrderDegradationDataset":
            del roots["dataroot_lq"]
        opt = {"type": kind, "name": "set", "phase": "test", "scale": 4, "io_backend": {"type": "disk"}, **roots}
        with within_seconds():
            item = ReadableItems(build_dataset(opt))[0]
        kinds["unreadable" in item] += 1
        if "unreadable" in item:
            assert str(tmp_path) in item["unreadable"] and "\n" not in item["unreadable"]
            return
        for tensor in (item[key] for key in ("lq", "gt") if key in item):
            assert tensor.shape[0] == 3 and 0 <= tensor.min() and tensor.max() <= 1
        if "gt" in item:
            assert [4 * side for side in item["lq"].shape[1:]] == list(item["gt"].shape[1:])

    assert all(kinds.values())  # both happen


# Option files


OPTIONS = sorted((Path(__file__).parents[2] / "options").glob("*.yml"))
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, "", "x", "~", "1e-4", "../..", "/", "\0", "\ud7ff\U0001f98a", [], {}, [[]], {"a": {}}]
    ),
    st.sampled_from(
        [0, -1, 0.5, 10**6, 10**30, -(10**30), 1e308, float("inf"), float("nan"), [1, 2], [0.5, "x"], "none"]
    ),
    st.recursive(st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)
SNIPPETS = (
    b"\xff\xfe", b"\0", b"\t", b": ", b"- ", b"{", b"]", b"&a [*a]\n", b"*a", b"!!python/object/apply:os.abort []",
    b"!!binary x", b"!!set {a}", b"? [a, b]\n", b"<<: *b\n", b"%YAML 9.9\n---\n", b"---\n", b"!!timestamp 2001-99-99",
    b"0x", b"1:99:99", b"|\n", b"[" * 3000, b"{a: " * 500, b"x: &x [" + b"*y, " * 9 + b"]\n", b"2001-01-01",
    b"!!omap [a: 1]", b"'", b"#",
)  # fmt: skip


def nodes(section, path=()):
    """Paths to everything in nested sections and lists."""
    entries = section.items() if isinstance(section, dict) else enumerate(section)
    for key, value in list(entries):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from nodes(value, (*path, key))


@st.composite
def damaged_options(draw):
    opt = yaml.safe_load(draw(st.sampled_from(OPTIONS)).read_text(encoding="utf-8"))
    for dataset in opt["datasets"].values():
        dataset |= {key: "photos" for key in dataset if key.startswith("dataroot")}
    opt["path"] = {key: value and "weights.pth" for key, value in opt["path"].items()}
    for _ in range(draw(st.integers(0, 3))):
        *path, key = draw(st.sampled_from(sorted(nodes(opt), key=str)))
        section = opt
        for name in path:
            section = section[name]
        change = draw(st.sampled_from(("drop", "rename", "move", "replace", "replace", "replace")))
        if change == "replace" or isinstance(section, list):
            section[key] = copy.deepcopy(draw(VALUES))  # the lists among them are the same ones in every example
        else:
            value = section.pop(key)
            if change == "rename":
                section[draw(st.sampled_from((f"{key}s", str(key)[:-1], str(key).upper(), 1, None, "", "\0")))] = value
            elif change == "move":
                opt[key] = value
    data = yaml.safe_dump(opt, allow_unicode=True).encode("utf-8", "surrogatepass")
    for snippet, at in draw(st.lists(st.tuples(st.sampled_from(SNIPPETS), WHERE), max_size=2)):
        data = snippet.join(cut(data, at, at)[::2])
    return data


# check reads as they do, and takes longer: it goes on to build the networks and to train one batch
@pytest.mark.parametrize(("command", "share"), [("train", 0.45), ("test", 0.45), ("check", 0.1)])
@MANY
def test_damaged_options_are_read_or_refused(examples, command, share, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(GT)
    (tmp_path / "weights.pth").touch()
    # up to where the run's folders are made
    monkeypatch.setattr(loop, "train", lambda opt, args, run: 0)
    monkeypatch.setattr(loop, "test", lambda opt, args, run: 0)
    codes = []

    @for_all(int(examples * share), data=damaged_options())
    def check(data):
        (tmp_path / "x.yml").write_bytes(data)
        code, out, err = run(command, "-opt", "x.yml")
        codes.append(code)
        assert code == 0 or (code == 2 and (out + err).strip()), (code, out, err)
        assert "Traceback" not in out + err
        names = {path.name for path in tmp_path.iterdir()} - {".hypothesis"}
        assert names == {"photos", "weights.pth", "x.yml"}

    assert codes.count(2) > len(codes) / 2
