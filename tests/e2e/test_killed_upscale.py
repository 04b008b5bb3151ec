"""`basicsr upscale` killed by SIGKILL: whole files only, and a run that continues ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from photos import levels, save, tiff16
from small_networks import small_iter

import iter_arch
from basicsr_compat.images import is_whole

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]

# Runs of the command in children that are killed: where the n-th result is opened, half written, written, and synced,
# each found by what Python does with a temporary file; and after so many milliseconds of restoring. Prints what became
# of each: 9 where it was killed, else its exit code.
DRIVER = """
import itertools, os, shutil, signal, sys, threading
import torch
from iter_model import commands
from iter_model.photo import canvas, controlled, jobs, png_writer, processes, progress, restorer, writer

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(moment, number):
    seen = itertools.count(1)
    def hook(event, details):
        if event not in ("open", "os.rename") or ".tmp-" not in str(details[0]):
            return
        what = "rename" if event == "os.rename" else {"w": "opened", "r+": "written"}.get(details[1])
        if what == moment.replace("half ", "") and next(seen) == number:
            if moment == "half written":
                os.truncate(details[0], os.path.getsize(details[0]) // 2)
            die()
    sys.addaudithook(hook)

def child(kill, words):
    moment, number = kill
    if moment == "after":
        threading.Timer(number / 1000, die).start()
    elif moment:
        kill_at(moment, number)
    code = commands.main(words)
    sys.stdout.flush()
    os._exit(code)

def run(kill, words):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child(kill, words)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

kills = eval(sys.argv[1])
for index, kill in enumerate(kills):
    print("ended", *kill, run(kill, sys.argv[2:]))
    shutil.copytree("photos", f"states/{index}")
"""
KILLS = [
    ("opened", 1), ("half written", 1), ("written", 2), ("rename", 2), ("opened", 3), ("half written", 2),
    *[("after", milliseconds) for milliseconds in (100, 300, 600, 1000)],
    ("", 0),
]  # fmt: skip


def driven(folder, kills):
    words = ["upscale", "-i", "photos", "-o", "photos", "--suffix", "_x4", "--skip-existing", "--ext", "auto"]
    words += ["--model", "small.safetensors", "--steps", "4", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", DRIVER, repr(kills), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, done.stderr


def photos_of(folder):
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for index in range(9):
        suffix = (".png", ".jpg", ".webp")[index % 3]
        save(photos / f"{index}{suffix}", levels((24, 24 + 8 * (index % 2)), seed=index))
    (photos / "9.tif").write_bytes(tiff16(levels((20, 20)).astype("u2") * 257))
    iter_arch.save_pretrained(small_iter(), folder / "small.safetensors")
    return photos


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_a_folder_run_killed_ten_times_ends_with_the_files_of_an_undisturbed_run(tmp_path):
    inputs = content(photos_of(tmp_path / "undisturbed"))
    driven(tmp_path / "undisturbed", [("", 0)])
    expected = content(tmp_path / "undisturbed/photos")
    assert len(expected) == 2 * len(inputs)
    photos_of(tmp_path / "killed")
    out, err = driven(tmp_path / "killed", KILLS)
    ended = [line.split()[-1] for line in out.splitlines() if line.startswith("ended")]
    assert ended[: len(KILLS) - 5] == ["-9"] * 6 and ended[-1] == "0", out + err
    assert "not restored" not in err  # what a killed run left is no photo
    left_over = 0
    for index in range(len(KILLS)):
        for name, data in content(tmp_path / f"killed/states/{index}").items():
            if ".tmp-" in name:
                left_over += 1
            else:
                assert data == expected[name], (KILLS[index], name)
                assert is_whole(tmp_path / f"killed/states/{index}" / name)
    assert left_over >= 6  # the kills hit the writes
    assert content(tmp_path / "killed/photos") == expected
