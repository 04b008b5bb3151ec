"""`basicsr upscale` where photos fail, where it is interrupted, and where it refuses to start."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import levels, save
from pickles import Code
from upscale_stand_ins import main, names, run

import iter_arch
from iter_model.photo import folders, jobs, reader
from iter_model.photo.writer import write_photo

# Photos that fail


def test_bad_files_are_named_counted_and_skipped(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    save(photo_folder / "z.png")
    whole = save(photo_folder / "cut.jpg", levels((64, 64))).read_bytes()
    (photo_folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photo_folder / "empty.png").touch()
    (photo_folder / "letter.jpg").write_text("no image")
    (photo_folder / "notes.txt").write_text("no image either")
    output = tmp_path / "out"
    assert run(photo_folder, output) == 1
    assert names(output) == ["a.png", "z.png"]
    out, err = capsys.readouterr()
    assert out == f"restored 2 of 6 images in {output} (4 failed)\n"
    lines = err.splitlines()
    assert [Path(line.split(": ")[1]).name for line in lines] == ["cut.jpg", "empty.png", "letter.jpg", "notes.txt"]
    assert "truncated" in lines[0] and "0 bytes" in lines[1] and "not an image" in lines[2]


def test_one_failure_of_the_network_or_the_disk_does_not_stop_the_rest(
    bicubic_net, photo_folder, tmp_path, monkeypatch, capsys
):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        save(photo_folder / name)
    plain = bicubic_net.restore

    def restore(lq, **options):
        if not bicubic_net.calls:
            bicubic_net.calls.append(None)
            raise RuntimeError("broken kernel")
        return plain(lq, **options)

    def write(path, photo, *options):
        if path.stem == "b":
            raise OSError(28, "No space left on device")
        if path.stem == "d":
            raise MemoryError
        write_photo(path, photo, *options)

    monkeypatch.setattr(bicubic_net, "restore", restore)
    monkeypatch.setattr(jobs, "write_photo", write)
    assert run(photo_folder, tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["c.png"]
    err = capsys.readouterr().err
    assert f"{photo_folder / 'a.png'}: broken kernel" in err
    assert f"{photo_folder / 'b.png'}: [Errno 28] No space left on device" in err
    assert f"{photo_folder / 'd.png'}: MemoryError" in err


def test_of_images_that_went_through_together_only_the_broken_one_fails(
    bicubic_net, photo_folder, tmp_path, monkeypatch, capsys
):
    for index in range(4):
        save(photo_folder / f"{index}.png", np.full((6, 9, 3), 50 * index, np.uint8))
    plain = bicubic_net.restore

    def restore(lq, **options):
        if (lq.mean((1, 2, 3)) * 255).round().eq(100).any():
            raise RuntimeError("broken kernel")
        return plain(lq, **options)

    monkeypatch.setattr(bicubic_net, "restore", restore)
    assert run(photo_folder, tmp_path / "out", "--batch", 4) == 1
    assert names(tmp_path / "out") == ["0.png", "1.png", "3.png"]
    assert capsys.readouterr().err == f"not restored: {photo_folder / '2.png'}: broken kernel\n"


def test_messages_come_in_the_order_of_the_files(bicubic_net, photo_folder, tmp_path, monkeypatch, capsys):
    for name in "acdf":
        save(photo_folder / f"{name}.png")
    for name in "be":
        (photo_folder / f"{name}.png").touch()

    def write(path, photo, *options):
        time.sleep(0.02)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "write_photo", write)
    assert run(photo_folder, tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [Path(line.split(": ")[1]).stem for line in lines] == list("abcdef")


@pytest.mark.parametrize(
    ("module", "during"), [(reader, "read_photo"), (jobs, "write_photo"), (iter_arch, "load_pretrained")]
)
def test_interruption_leaves_whole_files_only(bicubic_net, photo_folder, tmp_path, monkeypatch, capsys, module, during):
    for name in ("a.png", "b.png"):
        save(photo_folder / name)
    plain = getattr(module, during)

    def interrupted(path, *arguments, **options):
        if during == "load_pretrained" or Path(path).stem == "b":
            raise KeyboardInterrupt
        return plain(path, *arguments, **options)

    monkeypatch.setattr(module, during, interrupted)
    output = tmp_path / "out"
    assert run(photo_folder, output) == 130
    if during != "load_pretrained":
        assert names(output) == ["a.png"]
    assert "interrupted" in capsys.readouterr().err


# Wrong usage: exit status 2, nothing written


def test_a_folder_that_cannot_be_written_is_found_out_first(bicubic_net, photo_folder, tmp_path, monkeypatch, capsys):
    save(photo_folder / "a.png")

    def refused(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(folders.tempfile, "TemporaryFile", refused)
    assert run(photo_folder, tmp_path / "out") == 2
    assert bicubic_net.calls == [] and "Permission denied" in capsys.readouterr().err


def fails(capsys, output, *arguments):
    """The message of a run that must refuse to start."""
    before = names(output) if output.is_dir() else output.exists()
    assert main("-o", output, *arguments) == 2
    assert (names(output) if output.is_dir() else output.exists()) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("basicsr upscale: error: ") and err.count("\n") == 1
    return err


def test_missing_and_empty_input(bicubic_net, photo_folder, tmp_path, capsys):
    output = tmp_path / "out"
    message = fails(capsys, output, "-i", tmp_path / "gone")
    assert f"{tmp_path / 'gone'} does not exist" in message
    message = fails(capsys, output, "-i", photo_folder)
    assert str(photo_folder) in message and "expected images" in message and "--recursive" in message


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--alpha", "1.5", "--alpha=1.5 must be a number in [0, 1]"),
        ("--alpha", "nan", "--alpha=nan must be a number in [0, 1]"),
        ("--steps", "0", "--steps=0 must be a whole number from 1 to 1000"),
        ("--temperature", "0", "--temperature=0.0 must be a number > 0"),
        ("--selection", "best", "--selection='best' must be one of evaluator, confidence, halton"),
        ("--schedule", "sine", "--schedule='sine'"),
        ("--seed", "-1", "--seed=-1 must be in"),
        ("--tile", "-1", "--tile=-1 must be 0"),
        ("--tile", "15", "at least 16"),
        ("--batch", "0", "--batch=0 must be at least 1"),
        ("--quality", "90", "--quality=90 must be from 1 to 100, and --ext"),
        ("--ext", "bmp", "--ext=bmp must be one of auto, png, jpg"),
        ("--device", "tpu", "--device=tpu must be auto, cpu, mps, cuda or cuda:N"),
        ("--device", "cpu,cpu:1", "--device=cpu:1 must be"),
        ("--outscale", "0", "--outscale=0.0 must be above 0"),
        ("--outscale", "1e9", "--outscale=1000000000.0 must be above 0 and below 1048576"),
        ("--suffix", "/../x", "--suffix='/../x' must be a part of a file's name"),
        ("--suffix", "\0", "must be a part of a file's name"),
        ("--max-side", "-3", "--max-side=-3 must be above 0"),
        ("--max-pixels", "-1", "--max-pixels=-1 must be 0 (no limit) or above"),
    ],
)
def test_values_out_of_range(bicubic_net, photo_folder, tmp_path, capsys, option, value, rule):
    save(photo_folder / "a.png")
    assert rule in fails(capsys, tmp_path / "out", "-i", photo_folder, f"{option}={value}")


def test_a_home_of_nobody_does_not_exist(bicubic_net, photo_folder, tmp_path, capsys):
    assert "-i ~nobody_here/x does not exist" in fails(capsys, tmp_path / "out", "-i", "~nobody_here/x")


def test_values_of_a_wrong_kind(photo_folder, tmp_path, capsys):
    for wrong in (("--steps", "many"), ("--frames", "some"), ("--unknown",)):
        with pytest.raises(SystemExit) as caught:
            main("-i", photo_folder, "-o", tmp_path / "out", *wrong)
        assert caught.value.code == 2
        assert wrong[0] in capsys.readouterr().err


def test_unknown_and_broken_models(photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    assert "no_such_model" in fails(capsys, tmp_path / "out", "-i", photo_folder, "--model", "no_such_model")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    assert str(broken) in fails(capsys, tmp_path / "out", "-i", photo_folder, "--model", broken)


def test_code_in_a_model_file_is_not_run(photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    torch.save({"params": {"weight": Code(str(tmp_path / "proof"))}}, tmp_path / "model.pth")
    assert run(photo_folder, tmp_path / "out", "--model", tmp_path / "model.pth") == 2
    err = capsys.readouterr().err
    assert err.startswith("basicsr upscale: error: ") and str(tmp_path / "model.pth") in err
    assert names(tmp_path) == ["model.pth", "photos"]


def test_cuda_without_a_gpu(bicubic_net, photo_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save(photo_folder / "a.png")
    assert "--device=cpu" in fails(capsys, tmp_path / "out", "-i", photo_folder, "--device", "cuda")
    assert main("-i", photo_folder, "-o", tmp_path / "out", "--device", "auto") == 0


def test_an_input_is_never_overwritten(bicubic_net, photo_folder, tmp_path, capsys):
    source = save(photo_folder / "a.png")
    before = source.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(photo_folder)
    for given, output in ((photo_folder, photo_folder), (source, photo_folder), (photo_folder, link)):
        assert f"overwrite the input {source}" in fails(capsys, output, "-i", given)
    assert source.read_bytes() == before
    save(photo_folder / "b.jpg")
    assert run(photo_folder / "b.jpg", photo_folder) == 0
    assert names(photo_folder) == ["a.png", "b.jpg", "b.png"]


def test_output_that_is_no_folder(bicubic_net, photo_folder, tmp_path, capsys):
    save(photo_folder / "a.png")
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is a file" in fails(capsys, file, "-i", photo_folder)
    assert "looks like a file" in fails(capsys, tmp_path / "result.png", "-i", photo_folder)
    assert str(file) in fails(capsys, file / "below", "-i", photo_folder)
