"""iter_arch where BasicSR is missing; and its registries, whether BasicSR is imported before or after."""

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class NoBasicSR:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "basicsr":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoBasicSR())
"""
NETWORKS = ["ITER", "LQEncoder", "SwinVQGAN", "TokenEvaluator", "TokenRefiner"]


def run(code, folder, **environment):
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.long
def test_load_and_restore_without_basicsr(tmp_path):
    code = (
        BLOCKED
        + """
import torch, iter_arch
net = iter_arch.load_pretrained("iter_tiny_x4")
lq = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
restored = net.restore(lq)
print(tuple(restored.image.shape), torch.equal(net(lq), restored.image), net.sampling.alpha)
iter_arch.save_pretrained(net, "net.safetensors")
again = iter_arch.load_pretrained("net.safetensors")
print(torch.equal(again(lq), restored.image), "basicsr" in sys.modules)
"""
    )
    assert run(code, tmp_path).splitlines() == ["(1, 3, 80, 96) True 0.2", "True False"]


@pytest.mark.long
def test_downloads_need_no_basicsr(tmp_path):
    code = (
        BLOCKED
        + """
import os, pathlib, iter_arch
from iter_arch.pretrained import download
os.environ["ITER_CACHE"] = "cache"
pathlib.Path("site").mkdir()
pathlib.Path("site/a.pth").write_bytes(b"abc")
print(download.fetch(download.Remote("a.pth", pathlib.Path("site/a.pth").absolute().as_uri())).read_bytes())
"""
    )
    assert run(code, tmp_path).strip() == "b'abc'"


def test_the_command_is_there_where_basicsr_is_blocked(tmp_path):
    code = "import sys; sys.modules['basicsr'] = None; from iter_model.commands import main; main(['--version'])"
    assert run(code, tmp_path).startswith("iter-sr")


@pytest.mark.long
@pytest.mark.parametrize("first", ["iter_arch", "basicsr_compat, basicsr.archs"])
def test_the_registries_hold_our_networks_whatever_is_imported_first(tmp_path, first):
    code = f"""
import {first}
import iter_arch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
print(sorted(name for name, network in ARCH_REGISTRY if network.__module__.startswith("iter_arch.")))
print(type(build_network({{"type": "TokenEvaluator", "num_codes": 8, "swin": {{"dim": 8, "depth": 1}}}})).__name__)
"""
    assert run(code, tmp_path).splitlines()[-2:] == [str(NETWORKS), "TokenEvaluator"]


@pytest.mark.long
def test_importing_iter_arch_imports_no_basicsr(tmp_path):
    assert run("import iter_arch, sys; print('basicsr' in sys.modules)", tmp_path).strip() == "False"
