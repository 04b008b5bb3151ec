"""Runs `basicsr` in forks of one process that has imported everything, killing them or filling their disk as asked.

A line of standard input is a run, as JSON: folder, words (the command line), and where it comes to harm:

    kill: [point, k]   SIGKILL at the k-th time (from 1) that the run comes to a point of POINTS
    signal: [n, point, k]   signal n at that time
    limit: bytes       no file grows beyond this size (RLIMIT_FSIZE), as on a full disk, and torch.save's is not larger

A line of standard output answers: code (negative: of the signal that killed it), output.
"""

import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import torch

import basicsr_compat
import iter_model
from iter_model import commands

POINTS = {
    "iteration": "a training step is computed",
    "write": "a checkpoint is half written",
    "rename": "a checkpoint is written and has its temporary name",
    "renamed": "a checkpoint is there",
    "validation": "an image of a validation is restored",
    "prune": "an old checkpoint is about to be removed",
}


def harm(plan: dict) -> None:
    """Patch this process so that it comes to harm as planned."""
    counts = dict.fromkeys(POINTS, 0)

    def reach(point):
        counts[point] += 1
        if plan.get("kill") == [point, counts[point]]:
            os.kill(os.getpid(), signal.SIGKILL)
        number, *where = plan.get("signal", [0])
        if where == [point, counts[point]]:
            os.kill(os.getpid(), number)

    if plan.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["limit"], resource.RLIM_INFINITY))
    save, replace, unlink = torch.save, os.replace, Path.unlink

    def half_save(obj, path):
        save(obj, path)
        if plan.get("kill") == ["write", counts["write"] + 1]:
            os.truncate(path, os.path.getsize(path) // 2)
        reach("write")

    def slow_replace(source, target):
        reach("rename")
        replace(source, target)
        reach("renamed")

    def slow_unlink(self, missing_ok=False):
        if self.suffix in (".pth", ".state"):
            reach("prune")
        unlink(self, missing_ok)

    from basicsr.models import base_model

    torch.save, os.replace, Path.unlink = half_save, slow_replace, slow_unlink
    resume = base_model.BaseModel.setup_schedulers

    # Of every model, the last thing that is set up before its training.
    def setup_schedulers(self):
        resume(self)
        optimize, test = self.optimize_parameters, self.test

        def optimize_parameters(current_iter):
            reach("iteration")
            optimize(current_iter)
            with open("losses.txt", "a") as file:
                values = {name: float(value).hex() for name, value in sorted(self.get_current_log().items())}
                print(json.dumps([current_iter, values]), file=file, flush=True)

        def test_one():
            reach("validation")
            test()

        self.optimize_parameters, self.test = optimize_parameters, test_one

    base_model.BaseModel.setup_schedulers = setup_schedulers


def run(plan: dict) -> None:
    """One run in this process."""
    os.chdir(plan["folder"])
    with open("output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    harm(plan)
    sys.exit(commands.main(plan["words"]))


def main() -> None:
    """Answer each line of stdin, a plan in JSON, with what became of its run."""
    basicsr_compat.install_pipeline()
    assert iter_model and threading.active_count() == 1  # nothing that a fork would lose
    for line in sys.stdin:
        plan = json.loads(line)
        child = os.fork()
        if not child:
            run(plan)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer = {"code": code, "output": Path(plan["folder"], "output.txt").read_text()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
