"""`torchrun ... basicsr upscale` and `test`: processes share out photos, and give what one process gives."""

import json
import re
import subprocess

import pytest
import yaml
from commands import BASICSR, call, torchrun
from photos import blurred, levels, save, unusable
from small_networks import config, small_iter

import iter_arch

PHOTOS = [f"{index}.png" for index in range(6)]
WORDS = ["upscale", "-i", "photos", "-o", "out", "--model", "small.safetensors", "--steps", "2", "--device", "cpu"]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a small ITER and six photos."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "photos").mkdir()
    iter_arch.save_pretrained(small_iter(), folder / "small.safetensors")
    for index, name in enumerate(PHOTOS):
        save(folder / "photos" / name, levels((12 + index // 2, 16), seed=index))
    return folder


def run(folder, *words, processes=2):
    """(exit code, stdout, stderr) of the command in one process or more."""
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = [BASICSR] if processes == 1 else torchrun(processes)
    words = ["env", *(f"{key}={value}" for key, value in environment.items()), *map(str, [*start, *WORDS, *words])]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout, result.stderr


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(folder):
    """What one process makes of the photos."""
    code, _, errors = run(folder, "-o", "alone", processes=1)
    assert code == 0, errors
    return content(folder / "alone")


def test_each_photo_is_restored_once_as_by_one_process_with_one_object(folder, alone):
    code, output, errors = run(folder, "-o", "shared", "--json")
    assert code == 0, errors
    assert content(folder / "shared") == alone
    found = [json.loads(line) for line in output.splitlines()]
    assert sorted(one["input"] for one in found) == [f"photos/{name}" for name in PHOTOS]
    assert {one["output"] for one in found} == {f"shared/{name}" for name in PHOTOS}


def test_a_bad_photo_is_named_once_and_what_is_restored_already_is_skipped(folder, alone):
    bad, kept = folder / "photos/bad.png", folder / "again/2.png"
    kept.parent.mkdir()
    kept.write_bytes(alone["2.png"])
    before = kept.stat().st_mtime_ns
    bad.write_bytes(unusable(levels((16, 16)))["cut.png"])
    try:
        code, output, errors = run(folder, "-o", "again", "--skip-existing")
    finally:
        bad.unlink()
    assert code == 1
    assert kept.stat().st_mtime_ns == before
    assert content(folder / "again") == alone
    assert output == "restored 5 of 6 images in again (1 failed)\n"
    assert errors.count("skipped 1 that are restored already") == 1
    assert errors.count("not restored:") == 1 and "photos/bad.png" in errors


def test_wrong_usage_is_said_once_and_nothing_is_written(folder):
    code, output, errors = run(folder, "-o", "wrong", "--steps", "0")
    assert code == 1  # torchrun's own, whatever its processes end with
    assert errors.count("basicsr upscale: error:") == 1 and "--steps=0" in errors
    assert not (folder / "wrong").exists() and not output


def test_basicsr_test_shares_out_a_set(folder):
    for part, side in (("gt", 64), ("lq", 16)):
        (folder / part).mkdir()
        for index in range(5):
            save(folder / part / f"{index}.png", blurred(side, side, seed=index))
    pairs = {"name": "pairs", "type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq"}
    opt = {
        "model_type": "ITERModel",
        "scale": 4,
        "num_gpu": 0,
        "datasets": {"test": pairs},
        "network_g": {"type": "ITER", **config()},
        "path": {"pretrain_network_g": "small.safetensors"},
        "val": {"save_img": True, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
    }
    lines, images = [], []
    for name, start in (("one", [BASICSR]), ("two", torchrun(2))):
        (folder / f"{name}.yml").write_text(yaml.safe_dump({"name": name, **opt}))
        launcher = ["--launcher", "pytorch"] if name == "two" else []
        code, output = call(folder, *start, "test", "-opt", f"{name}.yml", *launcher)
        assert code == 0, output
        lines.append(re.findall(r"# psnr: .*", output))
        images.append(
            {p.name.replace(f"_{name}", ""): p.read_bytes() for p in folder.rglob(f"results/{name}/**/*.png")}
        )
    assert lines[0] == lines[1] and len(lines[0]) == 1
    assert images[0] == images[1] and len(images[0]) == 5
