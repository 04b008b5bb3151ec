"""What BasicSR needs to run: each repair, and the import hook that applies it."""

import copy
import importlib
import inspect
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import basicsr
import numpy as np
import pytest
import torch
from basicsr.data import degradations
from basicsr.utils import img_process_util
from basicsr.utils.diffjpeg import DiffJPEG
from basicsr.utils.registry import MODEL_REGISTRY
from small_models import sr_options

import basicsr_compat
from basicsr_compat.repairs import REPAIRS


def python(code, folder=None):
    """What `code` prints in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------- the repairs


def test_a_module_that_torchvision_dropped_is_there():
    from torchvision.transforms.functional import rgb_to_grayscale
    from torchvision.transforms.functional_tensor import rgb_to_grayscale as stand_in

    image = torch.rand(1, 3, 4, 4)
    assert torch.equal(stand_in(image), rgb_to_grayscale(image))


def test_jpeg_takes_a_quality_between_whole_numbers():
    image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    assert np.array_equal(degradations.add_jpg_compression(image, 50.7), degradations.add_jpg_compression(image, 50))


def test_filter2d_takes_what_diffjpeg_returns():
    image = DiffJPEG(differentiable=False)(torch.rand(2, 3, 32, 32), quality=50).to(memory_format=torch.channels_last)
    kernel = torch.zeros(2, 5, 5)
    kernel[:, 2, 2] = 1
    assert torch.allclose(img_process_util.filter2D(image, kernel), image)


@pytest.mark.parametrize("name", ["RealESRGANModel", "RealESRNetModel"])
def test_realesrgan_degrades_on_a_cpu(tmp_path, name, monkeypatch):
    def no_cuda(*args, **kwargs):
        raise AssertionError("CUDA is not to be touched")

    monkeypatch.setattr(torch.nn.Module, "cuda", no_cuda)
    monkeypatch.setattr(torch.Tensor, "cuda", no_cuda)
    opt = sr_options(tmp_path, model_type=name, scale=2, queue_size=4, gt_size=32, l1_gt_usm=True)
    opt["network_d"] = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 2}
    opt["train"].update(
        gan_opt={"type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0, "fake_label_val": 0.0}
    )
    opt["train"].update(optim_d={"type": "Adam", "lr": 0.01})
    for suffix in ("", "2"):
        opt |= {f"resize_prob{suffix}": [0.2, 0.7, 0.1], f"resize_range{suffix}": [0.5, 1.5]}
        opt |= {f"gaussian_noise_prob{suffix}": 0.5, f"noise_range{suffix}": [1, 30], f"gray_noise_prob{suffix}": 0.4}
        opt |= {f"poisson_scale_range{suffix}": [0.05, 3], f"jpeg_range{suffix}": [30, 95]}
    opt |= {"second_blur_prob": 0.8, "gt_usm": True}
    model = MODEL_REGISTRY.get(name)(copy.deepcopy(opt))
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 10, 10] = 1
    batch = {"gt": torch.rand(2, 3, 64, 64), "kernel1": kernel, "kernel2": kernel, "sinc_kernel": kernel}
    for _ in range(3):  # the third takes pairs from the full pool
        model.feed_data(batch)
    assert model.lq.shape == (2, 3, 16, 16)
    assert model.queue_lr.device == model.lq.device
    assert type(model.jpeger) is DiffJPEG


# ------------------------------------------------------------------------------------------- the import hook


def test_the_package_is_light():
    heavy = {"torch", "torchvision", "numpy", "scipy", "cv2", "basicsr"}
    python(f"import sys, basicsr_compat; loaded = {heavy} & set(sys.modules); assert not loaded, loaded")


BEFORE = """
import torchvision.transforms._functional_tensor as module
sys.modules["torchvision.transforms.functional_tensor"] = module
import basicsr, basicsr_compat
"""
EVERYWHERE = """
from basicsr_compat.repairs import REPAIRS
for repair in REPAIRS[2:]:
    assert repair._find(sys.modules[repair.module])[2].repaired_by == repair.target, repair
assert basicsr.models.realesrgan_model.filter2D is basicsr.utils.img_process_util.filter2D
assert basicsr.load_resume_state is basicsr.train.load_resume_state
"""


REGISTERED = """
@basicsr_compat.register("arch")
class Net: pass
from basicsr.utils.registry import ARCH_REGISTRY
assert ARCH_REGISTRY.get("Net") is Net
Net = type("Net", (), {"__module__": "__main__"})  # as where its module is imported a second time
basicsr_compat.register("arch", Net)
assert ARCH_REGISTRY.get("Net") is Net
"""


@pytest.mark.long
@pytest.mark.parametrize("basicsr", ["before", "after"])
def test_basicsr_is_repaired_and_knows_our_classes_whenever_it_is_imported(basicsr):
    if basicsr == "before":
        python(f"import sys\n{BEFORE}\n{EVERYWHERE}\n{REGISTERED}")
    else:
        python(f"import sys, basicsr_compat\n{REGISTERED}\nimport basicsr\n{EVERYWHERE}")


@pytest.mark.long
def test_our_packages_can_be_imported_a_second_time():
    python(
        "import sys, iter_arch, iter_data, iter_model\n"
        "ours = ('basicsr_compat', 'iter_arch', 'iter_data', 'iter_model')\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] in ours]: del sys.modules[name]\n"
        "import iter_arch, iter_data, iter_model.iter_model\n"
        "from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY\n"
        "assert ARCH_REGISTRY.get('ITER') is iter_arch.ITER\n"
        "assert DATASET_REGISTRY.get('RealPairDataset') is iter_data.RealPairDataset\n"
        "assert MODEL_REGISTRY.get('ITERModel') is iter_model.iter_model.ITERModel\n"
    )


def test_repairing_again_changes_nothing():
    def current():
        return [repair._find(importlib.import_module(repair.module))[2] for repair in REPAIRS[2:]]

    before = current()
    basicsr_compat.repair()
    assert all(one is other for one, other in zip(before, current(), strict=True))
    assert sum(type(finder).__name__ == "_Hook" for finder in sys.meta_path) == 1


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module of this test alone, and the file that it is in."""
    name = f"module_of_{tmp_path.name}".replace("[", "_").replace("]", "_")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"{name}.py"
    path.write_text("import time\ntime.sleep(0.2)\nvalue = 1\n")
    yield name, path
    sys.modules.pop(name, None)


def test_it_calls_back_after_the_import_and_after_a_reload(module):
    name, path = module
    seen = []
    basicsr_compat.when_imported(name, lambda module: seen.append(module.value))
    assert seen == []
    imported = importlib.import_module(name)
    assert seen == [1]
    path.write_text("value = 20\n")
    importlib.reload(imported)
    assert seen == [1, 20]
    basicsr_compat.when_imported(name, lambda module: seen.append(-module.value))
    assert seen == [1, 20, -20]


def test_a_module_looks_as_it_does_without_the_hook(module):
    name, path = module
    basicsr_compat.when_imported(name, lambda module: None)
    spec = importlib.util.find_spec(name)
    assert spec.origin == str(path) and spec.loader.get_source(name) == path.read_text()
    imported = importlib.import_module(name)
    assert type(imported.__loader__) is type(imported.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert inspect.getsource(imported) == path.read_text()


def test_a_module_that_fails_is_not_called_back_for(module):
    name, path = module
    path.write_text("raise ValueError('a fault of its own')\n")
    seen = []
    basicsr_compat.when_imported(name, seen.append)
    with pytest.raises(ValueError, match="a fault of its own"):
        importlib.import_module(name)
    path.write_text("value = 2\n")
    importlib.invalidate_caches()
    assert seen == [] and [importlib.import_module(name)] == seen


@pytest.mark.parametrize("asked_during_the_import", [False, True])
def test_threads_that_import_at_once_see_the_repaired_module(module, asked_during_the_import):
    name, _ = module
    calls = []

    def repair(imported):
        calls.append(imported)
        imported.value = 2

    seen = []
    if not asked_during_the_import:
        basicsr_compat.when_imported(name, repair)
    threads = [threading.Thread(target=lambda: seen.append(importlib.import_module(name).value)) for _ in range(8)]
    for thread in threads:
        thread.start()
    if asked_during_the_import:
        while name not in sys.modules:
            pass
        basicsr_compat.when_imported(name, repair)
        assert sys.modules[name].value == 2
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert asked_during_the_import or seen == [2] * 8


# ------------------------------------------------------------------------------------------- registries


def test_a_name_of_another_class_is_refused_and_an_unknown_kind_too():
    with pytest.raises(AssertionError, match="SRModel"):
        basicsr_compat.register("model", type("SRModel", (), {}))
    with pytest.raises(ValueError, match="kind='models' must be one of arch, dataset, model, loss, metric"):
        basicsr_compat.register("models")


# ------------------------------------------------------------------------------------------- another BasicSR

MENDED = {
    "data/degradations.py": (
        ("torchvision.transforms.functional_tensor", "torchvision.transforms.functional"),
        ("int(cv2.IMWRITE_JPEG_QUALITY), quality]", "int(cv2.IMWRITE_JPEG_QUALITY), int(quality)]"),
    ),
    "metrics/niqe.py": (("scipy.ndimage.filters", "scipy.ndimage"),),
    "utils/img_process_util.py": ((".view(", ".reshape("),),
    "utils/dist_util.py": (
        ("    torch.cuda.set_device(rank % num_gpus)\n", "    backend = backend if num_gpus else 'gloo'\n"),
        ("    torch.cuda.set_device(proc_id % num_gpus)\n", "    backend = backend if num_gpus else 'gloo'\n"),
        ("str(proc_id % num_gpus)", "str(proc_id % max(num_gpus, 1))"),
    ),
    "models/base_model.py": (
        ("[torch.cuda.current_device()]", "None if self.device.type == 'cpu' else [torch.cuda.current_device()]"),
    ),
    "train.py": (
        ("device_id = torch.cuda.current_device()", "device = 'cuda' if torch.cuda.is_available() else 'cpu'"),
        ("lambda storage, loc: storage.cuda(device_id)", "device"),
    ),
    "models/realesrgan_model.py": ((".cuda()", ".to(self.device)"),),
    "models/realesrnet_model.py": ((".cuda()", ".to(self.device)"),),
}


@pytest.fixture(scope="module")
def mended_basicsr(tmp_path_factory):
    """A folder with a BasicSR that has every fault mended, as its git main has some, under the same version."""
    folder = tmp_path_factory.mktemp("git-main")
    shutil.copytree(Path(basicsr.__file__).parent, folder / "basicsr", ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in MENDED.items():
        path = folder / "basicsr" / name
        source = path.read_text()
        for fault, mended in changes:
            assert fault in source, (name, fault)
            source = source.replace(fault, mended)
        path.write_text(source)
    return folder


@pytest.mark.long
def test_nothing_is_replaced_in_a_basicsr_that_is_not_broken(mended_basicsr):
    code = (
        "import sys, iter_arch, basicsr.train; from basicsr_compat.repairs import REPAIRS\n"
        f"assert basicsr.__file__.startswith({str(mended_basicsr)!r})\n"
        "replaced = [one.target for one in REPAIRS[2:] if one.is_needed()]\n"
        "assert not replaced, replaced\n"
        "assert REPAIRS[0].target not in sys.modules\n"
    )
    python(code, mended_basicsr)


@pytest.mark.long
def test_what_another_project_has_replaced_is_left_alone():
    python(
        "import sys, torchvision.transforms._functional_tensor as module\n"
        "sys.modules['torchvision.transforms.functional_tensor'] = module\n"
        "from basicsr.utils import img_process_util\n"
        "def filter2D(img, kernel): raise RuntimeError\n"
        "img_process_util.filter2D = filter2D\n"
        "import basicsr_compat\n"
        "assert img_process_util.filter2D is filter2D\n"
    )


@pytest.mark.long
def test_the_module_that_scipy_will_drop_is_supplied():
    python(
        "import sys, basicsr_compat\n"
        "import importlib.machinery, scipy.ndimage.filters\n"
        "del sys.modules['scipy.ndimage.filters'], scipy.ndimage.filters\n"
        "find = importlib.machinery.PathFinder.find_spec\n"
        "def without(name, *rest): return None if name == 'scipy.ndimage.filters' else find(name, *rest)\n"
        "importlib.machinery.PathFinder.find_spec = without\n"
        "from scipy.ndimage import filters\n"
        "assert filters.convolve is scipy.ndimage.convolve and filters.__doc__.startswith('Stand-in')\n"
        "import basicsr.metrics.niqe\n"
    )


def test_without_basicsr_it_is_imported_all_the_same():
    python(
        "import sys; sys.modules['basicsr'] = None\n"
        "import basicsr_compat\n"
        "basicsr_compat.repair()\n"
        "@basicsr_compat.register('arch')\n"
        "class Net: pass\n"
    )


@pytest.mark.long
def test_a_spawned_process_is_repaired_by_the_import_of_its_main_module(tmp_path):
    (tmp_path / "main.py").write_text(
        "import basicsr_compat\n"
        "import multiprocessing\n"
        "def use(items):\n"
        "    from basicsr.data.degradations import add_jpg_compression\n"
        "    items.put(add_jpg_compression.repaired_by)\n"
        "if __name__ == '__main__':\n"
        "    from basicsr.utils.img_process_util import filter2D\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    items = context.Queue()\n"
        "    process = context.Process(target=use, args=(items,))\n"
        "    process.start()\n"
        "    assert items.get(timeout=200) == 'basicsr.data.degradations:add_jpg_compression'\n"
        "    process.join()\n"
    )
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_repaired_function_can_be_pickled():
    assert pickle.loads(pickle.dumps(img_process_util.filter2D)) is img_process_util.filter2D


@pytest.mark.long
def test_the_table_names_every_repair():
    done = subprocess.run([sys.executable, "-m", "basicsr_compat"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for repair in REPAIRS:
        assert re.search(rf"^{re.escape(repair.target)}\n    (replaced|not broken here): ", done.stdout, re.MULTILINE)
