"""Jobs of a search in Slurm's queue, with stand-ins for its commands: what is submitted, found again, noticed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from runner.errors import UserError
from runner.files import write_json
from runner.launching import slurm_pool, slurm_queue
from runner.launching.rundir import RunDirectory
from runner.launching.slurm_pool import SlurmPool
from runner.launching.sweepdir import SweepDirectory
from runner.tuning.runs import TrialJob

SLURM = {
    "partition": None, "account": None, "qos": None, "constraint": None, "time": None, "memory": None, "nodes": 1,
    "cpus": 1, "gpus": None, "max_parallel": None, "max_attempts": 20, "grace": 60, "setup": [], "container": None,
    "python": None, "extra": [],
}  # fmt: skip
LAUNCH = {"scheduler": "slurm", "num_processes": 1, "threads": 1, "slurm": SLURM}
STAND_INS = {
    "sbatch": '[ -e "$HERE/down" ] && { echo "Socket timed out" >&2; exit 1; };'
    ' echo "sbatch $(basename "$2")" >> "$LOG"; echo x >> "$HERE/count"; expr 100 + $(wc -l < "$HERE/count")',
    "squeue": '[ -e "$HERE/down" ] && exit 1; cat "$HERE/listed" 2>/dev/null || true',
    "scancel": 'echo "scancel $*" >> "$LOG"',
    "scontrol": 'echo "JobState=$(cat "$HERE/state" 2>/dev/null || echo COMPLETED) Reason=None"',
}


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """A folder in which `listed` is the queue, `state` what Slurm says of a job, `down` a controller that is away."""
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    for name in ("LOOK_S", "ASK_S", "SOON_S"):
        monkeypatch.setattr(slurm_pool, name, 0.0)
    return tmp_path


NO_PROCESS = 2**22 + 1  # more than Linux gives


class Bench:
    """A search's folder, its pools, and elements that are played."""

    def __init__(self, here: Path) -> None:
        self.here, self.told = here, []
        self.place = SweepDirectory(here / "search")
        self.place.path.mkdir()
        write_json(self.place.path / "sweep.json", {"id": "search", "verb": "tune", "jobs": [], "needs": []})
        self.pool = self.again()

    def again(self) -> SlurmPool:
        self.pool = SlurmPool(self.place, LAUNCH, self.told.append)
        return self.pool

    def job(self, number: int) -> TrialJob:
        path = self.place.path / "jobs" / f"{number:03d}-aa"
        config = {"name": "n", "seed": number, "launch": LAUNCH, "run_dir": None, "output_dir": str(self.here)}
        return self.pool.add(TrialJob(config, path, ["train"], {"sweep": "search", "trial": number}))

    def play(self, job: TrialJob, status: str, message: str = "") -> None:
        run = RunDirectory(job.path)
        if not (job.path / "run.json").exists():
            RunDirectory.claim(job.config, "train", job.argv)
        run.begin_attempt(0)
        if status != "RUNNING":
            run.end_attempt(status, message=message)

    def listed(self, *lines: str, script: str = "submit.sbatch") -> None:
        path = self.place.path / script
        (self.here / "listed").write_text("".join(f"{line}|{path}\n" for line in lines))

    def log(self) -> list[str]:
        path = self.here / "log"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def bench(here) -> Bench:
    return Bench(here)


def test_what_is_ready_goes_in_one_array_and_ends_as_it_does(bench, here):
    jobs = [bench.job(n) for n in range(3)]
    bench.listed("101|0|RUNNING|None", "101|1|RUNNING|None", "101|2|PENDING|Resources")
    assert bench.pool.step(0) == [] and bench.log() == ["sbatch submit.sbatch"]
    text = (bench.place.path / "submit.sbatch").read_text()
    assert "#SBATCH --array=0-2\n" in text and "#SBATCH --job-name=search\n" in text
    assert slurm_queue.submissions(bench.place)[0] | {"submitted": ""} == {
        "job": "101", "needs": None, "numbers": [0, 1, 2], "submitted": "",
    }  # fmt: skip
    assert bench.place.freeze("000-aa", jobs[0].config) is None  # what the element reads
    bench.play(jobs[0], "COMPLETED")  # still listed: it is just leaving
    bench.play(jobs[1], "STOPPED", "stopped by SIGUSR2")  # requeued: not the end
    assert bench.pool.step(0) == [jobs[0]] and jobs[0].state == "COMPLETED"
    bench.listed("101|1|PENDING|BeginTime", "101|2|RUNNING|None")
    assert bench.pool.step(0) == [] and jobs[1].running
    bench.play(jobs[1], "FAILED", "the loss is not finite")
    bench.listed("101|2|RUNNING|None")
    assert bench.pool.step(0) == [jobs[1]]
    assert (jobs[1].state, jobs[1].message) == ("FAILED", "the loss is not finite")


def test_a_new_process_finds_what_an_earlier_one_has_submitted(bench):
    for n in range(4):
        bench.job(n)
    bench.pool.step(0)
    (bench.place.path / "slurm.json").unlink()  # killed right after sbatch
    bench.again()
    bench.listed("101|0|RUNNING|None", "101|2|PENDING|Resources", "55|3|RUNNING|None")
    (bench.here / "listed").open("a").write("56|3|RUNNING|None|/elsewhere/submit.sbatch\n")
    (bench.here / "state").write_text("PENDING")  # of the new one, which squeue does not list yet
    bench.play(
        TrialJob({"output_dir": "", "name": "n"}, bench.place.path / "jobs/001-aa", [], {"trial": 1}), "COMPLETED"
    )
    jobs = [bench.job(n) for n in range(5)]
    assert bench.pool.step(0) == [jobs[1]] and jobs[1].skipped
    assert bench.log() == ["sbatch submit.sbatch"] * 2
    assert "#SBATCH --array=4\n" in (bench.place.path / "submit.sbatch").read_text()
    assert [job.running for job in jobs] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("status", "slurm", "state", "words"),
    [
        ("RUNNING", "OUT_OF_MEMORY", "FAILED", "Slurm's job 101_0 ended as OUT_OF_MEMORY (oom-kill)"),
        ("RUNNING", "CANCELLED", "STOPPED", "ended as CANCELLED"),
        ("WAITING", "FAILED", "FAILED", "ended as FAILED (oom-kill) before the run began"),
        ("WAITING", "CANCELLED", "STOPPED", "cancelled before it began"),
        ("STOPPED", "CANCELLED", "STOPPED", "saved"),
    ],
)
def test_jobs_that_leave_the_queue_without_a_word(bench, status, slurm, state, words):
    job = bench.job(0)
    bench.listed("101|0|PENDING|None")
    bench.pool.step(0)
    if status != "WAITING":
        bench.play(job, status, "saved" if status == "STOPPED" else "")
        run = RunDirectory(job.path)
        run.update(attempts=[attempt | {"pid": NO_PROCESS} for attempt in run.info()["attempts"]])
    (bench.place.path / "slurm" / "101_0.log").write_text("runner: job 0\noom-kill\n")
    (bench.here / "state").write_text(slurm)
    bench.listed()
    assert bench.pool.step(0) == [job]
    assert job.state == state and words in job.message
    if status == "RUNNING":
        assert RunDirectory(job.path).info()["status"] == state


def test_stopping_one_job_takes_it_out_of_the_queue_and_stopping_the_pool_leaves_all_there(bench):
    one, other = bench.job(0), bench.job(1)
    bench.listed("101|0|RUNNING|None", "101|1|RUNNING|None")
    bench.pool.step(0)
    one.stop()
    assert bench.log()[-1] == "scancel 101_0"
    bench.play(one, "STOPPED", "stopped by SIGTERM")
    bench.listed("101|1|RUNNING|None")
    assert bench.pool.step(0) == [one] and one.state == "STOPPED"
    bench.pool.stop()
    assert bench.pool.step(0) == [other] and "queue" in other.message
    assert bench.log()[-1] == "scancel 101_0" and bench.pool.outlives


def test_a_decision_to_stop_survives_the_process(bench):
    """A job that an earlier process submitted can be stopped before the new one has looked for it."""
    bench.play(TrialJob({"output_dir": "", "name": "n"}, bench.place.path / "jobs/000-aa", [], {"trial": 0}), "RUNNING")
    (bench.place.path / "submit.sbatch").touch()
    bench.listed("77|0|RUNNING|None")
    bench.job(0).stop()
    assert bench.log() == ["scancel 77_0"]


def test_a_controller_that_is_away_for_a_while_is_borne(bench, monkeypatch):
    (bench.here / "down").touch()
    (bench.here / "state").write_text("PENDING")
    first = bench.job(0)
    with pytest.raises(UserError, match="sbatch refuses"):
        bench.pool.step(0)  # at the beginning it is told at once
    (bench.here / "down").unlink()
    bench.pool.step(0)
    (bench.here / "down").touch()
    second = bench.job(1)
    assert bench.pool.step(0) == bench.pool.step(0) == [] and len(bench.told) == 1 and "trying again" in bench.told[0]
    (bench.here / "down").unlink()
    bench.pool.step(0)
    assert first.running and second.running and bench.log() == ["sbatch submit.sbatch"] * 2
    (bench.here / "down").touch()
    monkeypatch.setattr(slurm_pool, "PATIENCE_S", 0.0)
    bench.pool.step(0)
    with pytest.raises(UserError):
        bench.pool.step(0)


def test_the_driver_is_one_core_and_resumes_the_search(bench):
    from runner.launching.slurm import DRIVER, driver_script

    asked = SLURM | {
        "partition": "gpu",
        "gpus": 4,
        "extra": ["--exclusive"],
        "setup": ["module load x"],
        "time": "1:00",
    }
    text = driver_script(bench.place, LAUNCH | {"slurm": asked})
    assert "#SBATCH --partition=gpu" in text and "#SBATCH --cpus-per-task=1" in text and "module load x" in text
    assert "gpus" not in text and "exclusive" not in text and "#SBATCH --requeue" in text
    assert f"export {DRIVER}=1" in text and f"-m runner resume {bench.place.path}" in text


@pytest.mark.parametrize(
    ("received", "state", "again"),
    [([signal.SIGUSR2], "RUNNING", True), ([signal.SIGTERM], "RUNNING", True), ([signal.SIGTERM], "CANCELLED", False)],
)
def test_a_driver_goes_on_later_unless_it_was_cancelled(bench, monkeypatch, received, state, again):
    from runner.launching.element import goes_on

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (bench.here / "state").write_text(state)
    assert goes_on(received) is again
