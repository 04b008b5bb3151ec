"""`basicsr upscale` as a user runs it: files in, files out. Photo by photo: unit/test_upscale.py."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from photos import levels, save
from PIL import Image

import iter_arch
from basicsr_compat.images import read_photo
from iter_model import commands

COMMAND = [sys.executable, "-m", "iter_model.commands", "upscale"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with a very small ITER of random weights."""
    small = {"swin": {"dim": 8, "depth": 2, "heads": 2, "window": 4}}
    vqgan = {"base_channels": 8, "res_blocks": 1, "quantizer": {"num_codes": 16, "dim": 8}, **small}
    lq_encoder = {"stem_channels": 8, "res_blocks": 1, **small}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = iter_arch.ITER(vqgan=vqgan, lq_encoder=lq_encoder, refiner=small, evaluator=small)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    iter_arch.save_pretrained(net, path)
    return path


def run(source, output, *arguments):
    return commands.main(["upscale", "-i", str(source), "-o", str(output), "--device", "cpu", *map(str, arguments)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2), (33, 47)])
def test_the_network_restores_any_size(weights, photo_folder, tmp_path, size):
    save(photo_folder / "a.png", levels(size))
    assert run(photo_folder, tmp_path / "out", "--model", weights, "--steps", 2, "--tile", 16) == 0
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).shape == (4 * size[0], 4 * size[1], 3)


def test_same_seed_same_pixels_whatever_else_is_in_the_folder(weights, photo_folder, tmp_path):
    source = save(photo_folder / "b.png", levels((12, 12)))
    options = ("--model", weights, "--steps", 2, "--no-adaptive", "--temperature", 2)
    assert run(source, tmp_path / "alone", *options, "--seed", 1) == 0
    assert run(source, tmp_path / "seed2", *options, "--seed", 2) == 0
    save(photo_folder / "a.png", levels((5, 5), seed=1))
    assert run(photo_folder, tmp_path / "both", *options, "--seed", 1) == 0
    alone, seed2, both = ((tmp_path / folder / "b.png").read_bytes() for folder in ("alone", "seed2", "both"))
    assert alone == both
    assert alone != seed2


@pytest.mark.parametrize("options", [("--tile", 32), ("--tile", 0)])
def test_files_do_not_depend_on_what_goes_through_together(weights, photo_folder, tmp_path, options):
    for index, size in enumerate([(20, 24), (20, 24), (20, 24), (9, 9), (20, 24), (20, 24), (40, 70)]):
        save(photo_folder / f"{index}.png", levels(size, seed=index))
    options = ("--model", weights, "--steps", 2, "--no-adaptive", "--temperature", 2, *options)
    assert run(photo_folder, tmp_path / "single", *options, "--batch", 1) == 0
    assert run(photo_folder, tmp_path / "many", *options, "--batch", 8) == 0
    for path in (tmp_path / "single").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_a_gray_photo_stored_as_rgb_comes_out_gray(weights, photo_folder, tmp_path, method):
    save(photo_folder / "a.png", levels()[..., :1].repeat(3, axis=2))
    assert run(photo_folder, tmp_path / "out", "--model", weights, "--color-correction", method) == 0
    result = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert result.ndim == 3 and (result == result[..., :1]).all() and result.std() > 0


# Not ru_maxrss, which a process takes over from the one that started it.
PEAKS = """
import sys
from iter_model.commands import main
for size in ("small", "large"):
    assert main(["upscale", "-i", f"{size}.png", "-o", "out", "--device", "cpu", *sys.argv[1:]]) == 0
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak in /proc/self/status")
def test_memory_is_that_of_one_float_copy_of_the_result(photo_folder, tmp_path):
    """Logits of all tokens alone would take 32 bytes a pixel more, and so would three more float copies of the result.

    Measured: 25.4, or 28.7 where the allocator keeps the room of one more copy in 8 bits.
    """
    torch.manual_seed(0)
    small = {"swin": {"dim": 8, "depth": 2, "heads": 2, "window": 4}}
    vqgan = {"base_channels": 8, "res_blocks": 1, "quantizer": {"dim": 8}, **small}
    net = iter_arch.ITER(vqgan=vqgan, lq_encoder={"stem_channels": 8, **small}, refiner=small, evaluator=small)
    iter_arch.save_pretrained(net, tmp_path / "net.safetensors")
    save(tmp_path / "small.png", levels((480, 480)))
    save(tmp_path / "large.png", levels((720, 720)))
    words = ["--model", "net.safetensors", "--steps", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    output = subprocess.run(
        [sys.executable, "-c", PEAKS, *words], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    small_peak, large_peak = (1024 * int(line) for line in output.splitlines() if line.isdigit())
    bytes_a_pixel = (large_peak - small_peak) / (16 * (720**2 - 480**2))
    assert 0 < bytes_a_pixel < 32


def command(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts jobs in the background with Ctrl-C ignored, and what they start inherits that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
        **options,
    )


def test_the_command_restores_and_reports(weights, photo_folder, tmp_path):
    save(photo_folder / "a.png", levels((20, 30)))
    (photo_folder / "b.png").touch()
    process = command("-i", "photos", "-o", "out", "--model", weights, "--steps", 2, cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert out.splitlines()[-1] == "restored 1 of 2 images in out (1 failed)"
    assert "not restored: photos/b.png: it is empty (0 bytes)" in err
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).shape == (80, 120, 3)


def test_ctrl_c_ends_the_command_without_a_traceback(weights, photo_folder, tmp_path):
    for index in range(300):
        save(photo_folder / f"{index:03}.png", levels((20, 20)))
    process = command("-i", "photos", "-o", "out", "--model", weights, cwd=tmp_path)
    output = tmp_path / "out"
    deadline = time.monotonic() + 120
    while (
        process.poll() is None and time.monotonic() < deadline and not (output.is_dir() and any(output.glob("*.png")))
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert 0 < len(names(output)) < 300
    for path in output.iterdir():
        assert read_photo(path).rgb.shape == (80, 80, 3)
