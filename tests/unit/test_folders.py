"""Folders of a run: its own are made, and an older run's are as they were where the start fails."""

import pytest

from basicsr_compat.pipeline.folders import RunFolders


@pytest.fixture
def good_run(tmp_path):
    folder = tmp_path / "experiments/run"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("good")
    return folder


def options(folder, **path):
    path = {"experiments_root": folder, "models": folder / "models", **path}
    return {"is_train": True, "rank": 0, "name": "run", "path": {key: str(value) for key, value in path.items()}}


def fail():
    raise ValueError("a typo")


def test_only_the_runs_own_folders_are_made(tmp_path):
    RunFolders().make(options(tmp_path / "run", pretrained_net=tmp_path / "x.pth"))
    assert (tmp_path / "run/models").is_dir()
    assert not (tmp_path / "x.pth").exists()


def test_a_run_that_fails_at_its_start_leaves_the_good_run_as_it_was(good_run, tmp_path):
    with pytest.raises(ValueError, match="a typo"), RunFolders() as folders:
        folders.make(options(good_run))
        assert not (good_run / "weights").exists()
        fail()
    assert (good_run / "weights").read_text() == "good"
    assert [path.name for path in good_run.parent.iterdir()] == ["run"]


def test_a_first_run_that_fails_at_its_start_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="a typo"), RunFolders() as folders:
        folders.make(options(tmp_path / "experiments/run"))
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_after_its_first_iteration_keeps_its_own_folder(good_run):
    with pytest.raises(ValueError, match="a typo"), RunFolders() as folders:
        folders.make(options(good_run))
        folders.begin()
        fail()
    assert not (good_run / "weights").exists() and (good_run / "models").is_dir()
    others = [path.name for path in good_run.parent.iterdir() if path != good_run]
    assert len(others) == 1 and others[0].startswith("run_archived_")


def test_a_run_that_torchrun_starts_anew_continues_in_its_folder(good_run):
    with RunFolders() as folders:
        folders.continues = True
        folders.make(options(good_run))
    assert (good_run / "weights").exists() and [path.name for path in good_run.parent.iterdir()] == ["run"]
