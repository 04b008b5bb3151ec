"""Option files as people write them: keys given twice, names that YAML reads otherwise, encodings, paths."""

import copy

import pytest
import yaml
from option_files import OPTIONS, change, read

from basicsr_compat.pipeline.data import build_set
from basicsr_compat.schema import OptionProblems


def test_a_key_given_twice_is_a_problem(parse_options):
    text = yaml.safe_dump(OPTIONS).replace("  total_iter: 10", "  total_iter: 10\n  total_iter: 20")
    with pytest.raises(OptionProblems, match=r"^train\.total_iter is given twice, in lines \d+ and \d+"):
        parse_options(text)
    with pytest.raises(OptionProblems, match=r"^scale is given twice"):
        parse_options(yaml.safe_dump(OPTIONS) + "scale: 4\n")


def test_a_key_in_two_sections_and_a_merged_section_are_none(parse_options):
    text = yaml.safe_dump(OPTIONS, sort_keys=False).replace("val_1:", "val_1: &one")
    opt = parse_options(text.replace("network_g:", "  val_2:\n    <<: *one\n    name: two\nnetwork_g:", 1))
    assert opt["datasets"]["val_2"] == opt["datasets"]["val_1"] | {"name": "two"}


@pytest.mark.parametrize("name", ["on", "yes", "Off", "007", "1e3", "2026-01-02", "1_000"])
def test_a_name_that_yaml_reads_otherwise_is_a_problem(parse_options, name):
    with pytest.raises(OptionProblems, match=rf"^name={name} is read as .* by YAML; put it in quotes: '{name}'$"):
        parse_options(yaml.safe_dump(OPTIONS).replace("name: small", f"name: {name}"))
    assert parse_options(yaml.safe_dump(OPTIONS).replace("name: small", f"name: '{name}'"))["name"] == name


def test_a_number_may_be_a_name(parse_options):
    assert parse_options(change("name", 12))["name"] == "12"
    assert parse_options(change("datasets.val_1.name", 12))["datasets"]["val_1"]["name"] in (12, "12")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_file_in_another_encoding_is_told_to_be_utf8(tmp_path, encoding):
    text = "# größer\n" + yaml.safe_dump(OPTIONS)
    (tmp_path / "x.yml").write_bytes((b"\xff\xfe" if encoding == "utf-16-le" else b"") + text.encode(encoding))
    with pytest.raises(OptionProblems, match="save it in UTF-8"):
        read(["-opt", str(tmp_path / "x.yml")], str(tmp_path))


def test_a_byte_order_mark_of_utf8_is_no_harm(tmp_path, parse_options):
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(OPTIONS).encode())
    assert read(["-opt", "bom.yml"], str(tmp_path))["name"] == "small"


def test_paths_may_have_home_and_variables_and_a_slash_at_the_end(parse_options, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))

    def place(content):
        content["datasets"]["train"]["dataroot_gt"] = "$HOME/images/"
        content["datasets"]["val_1"]["dataroot_gt"] = ["~/images", "${DATA}/images/"]
        content["path"]["pretrain_network_g"] = "$DATA/weights.pth"

    opt = parse_options(place)
    images = str(tmp_path / "images")
    assert opt["datasets"]["train"]["dataroot_gt"] == images
    assert opt["datasets"]["val_1"]["dataroot_gt"] == [images, images]
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "weights.pth")


def test_an_lmdb_may_be_named_with_a_slash_at_the_end(tmp_path):
    for name in ("lq.lmdb", "gt.lmdb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta_info.txt").write_text("a.png (8,8,3) 1\n")
    change("datasets.val_1.dataroot_gt", "x")(content := copy.deepcopy(OPTIONS))
    content["datasets"]["val_1"] |= {"io_backend": {"type": "lmdb"}}
    content["datasets"]["val_1"] |= {f"dataroot_{kind}": str(tmp_path / f"{kind}.lmdb/") + "/" for kind in ("lq", "gt")}
    content["datasets"]["train"] |= {f"dataroot_{kind}": str(tmp_path) for kind in ("lq", "gt")}
    (tmp_path / "x.yml").write_text(yaml.safe_dump(content))
    opt = read(["-opt", str(tmp_path / "x.yml")], str(tmp_path))
    assert len(build_set("val_1", opt["datasets"]["val_1"])) == 1
