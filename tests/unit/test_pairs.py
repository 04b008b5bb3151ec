"""Folders of pairs: what has no partner is named, with the option that would help."""

import pytest

from basicsr_compat import files
from basicsr_compat.pipeline import data
from basicsr_compat.schema import OptionProblems


@pytest.fixture
def pairs(tmp_path):
    """pairs(gt, lq, **section): the data set of folders with these files."""

    def build(gt, lq, **section):
        for kind, names in (("gt", gt), ("lq", lq)):
            (tmp_path / kind).mkdir()
            for name in names:
                (tmp_path / kind / name).touch()
        section |= {f"dataroot_{kind}": str(tmp_path / kind) for kind in ("gt", "lq")}
        section |= {"type": "PairedImageDataset", "name": "set", "phase": "val", "io_backend": {"type": "disk"}}
        return data.build_set("val", section)

    return build


@pytest.mark.parametrize(
    ("gt", "lq", "section", "messages"),
    [
        (["1.png"], ["1.png", "2.png"], {}, ["gt' has 1 files", "lq' has 2 files", "('2.png')", "take them out"]),
        (["1.png", "2.png"], ["1.png"], {}, ["gt' has 2 files, of which 1 have no partner ('2.png')"]),
        ([f"{i}.png" for i in range(9)], ["0.png"], {}, ["('1.png', '2.png', '3.png', ...)"]),
        (["1.png"], ["1x4.png"], {}, ["set filename_tmpl: '{}x4' (it is '{}')"]),
        (["0801.png", "0802.png"], ["LR_0801.png", "LR_0802.png"], {}, ["set filename_tmpl: 'LR_{}'"]),
        (["1.png"], ["1.png"], {"filename_tmpl": "{}x4"}, ["set filename_tmpl: '{}' (it is '{}x4')"]),
        (["1.png"], ["1.jpg"], {}, ["must have the same extension, and '1' has .png and .jpg"]),
        (["1.png"], ["1.png", "Thumbs.db"], {}, ["('Thumbs.db')", "take them out"]),
    ],
)
def test_what_has_no_partner_is_named(pairs, gt, lq, section, messages):
    with pytest.raises(OptionProblems) as caught:
        pairs(gt, lq, **section)
    assert str(caught.value).startswith("datasets.val: dataroot_gt=")
    assert all(message in str(caught.value) for message in messages), str(caught.value)


def test_pairs_that_fit_are_taken(pairs):
    assert len(pairs(["1.png", "2.png"], ["1x4.png", "2x4.png"], filename_tmpl="{}x4")) == 2


def test_files_of_a_list_that_are_not_there_are_named(tmp_path):
    for kind in ("gt", "lq"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").touch()
    (tmp_path / "meta.txt").write_text("a.png (8,8,3)\nb.png (8,8,3)\n")
    section = {"type": "PairedImageDataset", "name": "set", "phase": "val", "io_backend": {"type": "disk"}}
    section |= {f"dataroot_{kind}": str(tmp_path / kind) for kind in ("gt", "lq")}
    message = r"^datasets\.val names 2 of 4 files that are not there.*/b\.png.*or set filename_tmpl"
    with pytest.raises(OptionProblems, match=message):
        data.build_set("val", section | {"meta_info_file": str(tmp_path / "meta.txt")})


@pytest.mark.parametrize("kind", ["SecondOrderDegradationDataset", "PairedImageDataset"])
def test_the_files_of_a_list_are_looked_for_once(tmp_path, monkeypatch, kind):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").touch()
    (tmp_path / "meta.txt").write_text("a.png (8,8,3)\n")
    section = {"type": kind, "name": "set", "phase": "val", "scale": 4, "dataroot_gt": str(folder)}
    section |= {"io_backend": {"type": "disk"}}
    if kind == "PairedImageDataset":
        section |= {"dataroot_lq": str(folder), "meta_info_file": str(tmp_path / "meta.txt")}
    else:
        section |= {"meta_info": str(tmp_path / "meta.txt")}
    looked = []
    monkeypatch.setattr(files.os, "listdir", lambda path: looked.append(path) or ["a.png"])
    assert len(data.build_set("val", section)) == 1
    assert looked == [str(folder)]
