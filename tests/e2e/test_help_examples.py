"""Every example that the help of train, test and check shows is run as it stands, on small networks and photos."""

import re
import shlex

import pytest
import torch
import yaml
from commands import BASICSR, TORCHRUN, call
from photos import save_photos
from small_networks import small_iter
from small_options import small

from iter_arch import save_pretrained

FORCED_HERE = {"train:total_iter=1000": "train:total_iter=2", "--nproc_per_node=4": "--nproc_per_node=2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clone's folder: options, photos, and the outcomes of stage I and of stages II and III."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "options").mkdir()
    save_photos(folder / "photos", 4, 72, 80)
    for name in ("train_swin_vqgan", "train_iter", "test_iter"):
        small(name, folder)
        opt = yaml.safe_load((folder / f"{name}.yml").read_text())
        if name == "test_iter":
            opt["datasets"]["test"] |= {"type": "SecondOrderDegradationDataset"}
            opt["datasets"]["test"].pop("dataroot_lq")
            opt["path"]["pretrain_network_g"] = "experiments/train_iter_tiny/models/iter_latest.safetensors"
        else:
            opt["train"] |= {"total_iter": 2, "queue_size": 8} if name == "train_iter" else {"total_iter": 2}
            opt["train"].pop("perceptual_opt", None)  # its weights are downloaded
        (folder / f"options/{name}.yml").write_text(yaml.safe_dump(opt))
    net = small_iter()
    for name in ("train_swin_vqgan", "train_iter_tiny"):
        (folder / f"experiments/{name}/models").mkdir(parents=True)
    torch.save({"params_ema": net.vqgan.state_dict()}, folder / "experiments/train_swin_vqgan/models/net_g_latest.pth")
    save_pretrained(net, folder / "experiments/train_iter_tiny/models/iter_latest.safetensors")
    return folder


def examples(folder, command):
    """The words of each example in a command's help."""
    text = call(folder, BASICSR, command, "--help")[1].partition("examples:\n")[2].replace("\\\n", " ")
    lines = re.findall(r"^  ((?:basicsr|torchrun) .*?)(?:  +\(.*\))?$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "test", "train"])
def test_the_examples_of_help_run(folder, command):
    found = examples(folder, command)
    assert len(found) >= 2
    for words in found:
        program = {"basicsr": BASICSR, "torchrun": TORCHRUN}[words[0]]
        words = [FORCED_HERE.get(word, word) for word in words[1:]]
        if program == TORCHRUN:
            words[words.index("basicsr")] = str(BASICSR)
        code, output = call(folder, program, *words)
        assert code == 0, (words, output)
