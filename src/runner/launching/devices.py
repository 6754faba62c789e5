"""What the jobs that run at a time share out among themselves: GPUs and cores. Never imports torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from runner.errors import UserError
from runner.launching.ranks import cores

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def visible_gpus() -> list[str]:
    """The names (as CUDA_VISIBLE_DEVICES takes them) of the GPUs that this process may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return [str(n) for n, line in enumerate(x for x in done.stdout.splitlines() if x.startswith("GPU ")) if line]


class Gpus:
    """Leases GPUs to jobs.

    With a number per job, a job gets so many to itself and waits until they are free. Without one, jobs are spread:
    one GPU per process, the least busy ones first, shared where there are more jobs than GPUs.

    Args:
        per_job: of `launch.gpus_per_job`; 0 leaves all GPUs to every job.
        names: the GPUs; default: those that are visible.

    Raises:
        UserError: a job would never get its GPUs.
    """

    def __init__(self, per_job: int | None, names: list[str] | None = None) -> None:
        self.names = (visible_gpus() if per_job != 0 else []) if names is None else names
        self.per_job = per_job
        self._load = dict.fromkeys(self.names, 0)
        if per_job and per_job > len(self.names):
            raise UserError(
                f"launch.gpus_per_job={per_job}, but {len(self.names)} GPUs are visible here",
                "launch.gpus_per_job=null takes what there is",
                "runner doctor",
            )

    def lease(self, config: Mapping[str, Any]) -> list[str] | None:
        """GPUs for a job: names, an empty list where it needs none of its own, None where it has to wait."""
        launch = config["launch"]
        if launch["device"] == "cpu" or not self.names:
            return []
        count = self.per_job or min(launch["num_processes"], len(self.names))
        chosen = sorted(self.names, key=lambda name: self._load[name])[:count]
        if self.per_job and any(self._load[name] for name in chosen):
            return None
        for name in chosen:
            self._load[name] += 1
        return chosen

    def give_back(self, names: list[str]) -> None:
        """The job that leased them has ended."""
        for name in names:
            self._load[name] -= 1


def thread_share(config: Mapping[str, Any], jobs: int) -> dict[str, str]:
    """Environment that keeps `jobs` runs at a time from fighting for the cores.

    Two processes that each spin on all cores can be twenty times slower than two that share them. What the user has
    set, in `launch.threads` or in the environment, stands.
    """
    launch = config["launch"]
    if jobs == 1 or launch["threads"] or os.environ.get("OMP_NUM_THREADS"):
        return {}
    share = str(max(1, cores() // (jobs * launch["num_processes"])))
    return {name: share for name in THREAD_VARIABLES if name not in os.environ}
