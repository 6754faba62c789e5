"""What is asked of Slurm, with stand-ins for its commands: the script, what is submitted, the queue, the element."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runner.cli.main import main
from runner.launching import element, pool, slurm, slurm_queue
from runner.launching.rundir import RunDirectory
from runner.launching.sweepdir import SweepDirectory

FAKE = Path(__file__).with_name("fake_worker.py")
SLURM = ["launch=slurm", "launch.slurm.time=24:00:00", "launch.slurm.gpus=2", "launch.slurm.cpus=4"]
STAND_INS = {
    "sbatch": 'echo "$@" >> "$LOG"; ls -1 "$QUEUE" | wc -l | xargs -I{} expr 100 + {}; touch "$QUEUE/$RANDOM$RANDOM"',
    "squeue": 'cat "$LISTED" 2>/dev/null || true',
    "scancel": 'echo "scancel $*" >> "$LOG"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"; echo "   JobState=${JOB_STATE:-RUNNING} Reason=None"',
    "srun": "exit 1",
}


@pytest.fixture(autouse=True)
def log(monkeypatch, tmp_path) -> Path:
    """Programs of Slurm's names in the path, which write down how they are called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "queue").mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("LISTED", str(tmp_path / "listed"))
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(element, "worker_command", lambda path: [sys.executable, str(FAKE), str(path)])
    monkeypatch.setattr(pool, "worker_command", lambda path: [sys.executable, str(FAKE), str(path)])
    return tmp_path / "log"


def the_sweep() -> SweepDirectory:
    (path,) = Path("outputs/sweeps").iterdir()
    return SweepDirectory.open(path)


def submit(*overrides: str, code: int = 0) -> SweepDirectory:
    assert main(["train", "-m", *SLURM, *overrides]) == code
    return the_sweep()


def test_the_script_says_what_was_asked_for_and_is_valid_bash(log):
    place = submit(
        "seed=range(3)", "name=ok", "launch.slurm.max_parallel=2", "launch.slurm.partition=gpu",
        "launch.slurm.grace=90",
        "launch.slurm.setup=[module load cuda/12]", "launch.slurm.extra=[--exclusive]", "launch.slurm.qos=low",
        "launch.slurm.container='apptainer exec image.sif'", "launch.slurm.memory=32G", "launch.num_processes=4",
        "launch.slurm.nodes=2", "launch.slurm.account=me", "launch.slurm.constraint=a100",
        "launch.slurm.python=python3",
    )  # fmt: skip
    text = (place.path / "submit.sbatch").read_text()
    assert set(text.splitlines()) >= {
        f"#SBATCH --job-name={place.id}", "#SBATCH --array=0-2%2", "#SBATCH --time=24:00:00", "#SBATCH --partition=gpu",
        "#SBATCH --account=me", "#SBATCH --qos=low", "#SBATCH --constraint=a100", "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=32G", "#SBATCH --gpus-per-node=2",
        "#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=USR2@90", "#SBATCH --exclusive",
        "module load cuda/12",
    }  # fmt: skip
    assert "  apptainer exec image.sif \\\n  python3 -m runner.launching.element" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert log.read_text().split() == ["--parsable", str(place.path / "submit.sbatch")]
    assert slurm_queue.submissions(place)[0] | {"submitted": ""} == {
        "job": "100", "needs": None, "numbers": [0, 1, 2], "submitted": "",
    }  # fmt: skip


def test_dry_run_writes_and_stops(log, capsys):
    place = submit("seed=0,1", "name=ok", "--dry-run")
    assert not log.exists() and slurm_queue.submissions(place) == []
    assert (place.path / "submit.sbatch").read_text() in capsys.readouterr().out


def test_a_single_run_is_an_array_of_one(log):
    assert main(["train", *SLURM, "name=ok"]) == 0
    assert "#SBATCH --array=0-0" in (the_sweep().path / "submit.sbatch").read_text().replace("=0\n", "=0-0\n")


def test_needed_runs_come_first_in_an_array_of_their_own(log):
    place = submit("weighting=equal,pcgrad", "name=ok", "tasks=[depth,edge]")
    first, second = log.read_text().splitlines()
    assert first == f"--parsable {place.path / 'needs.sbatch'}"
    assert second == f"--parsable --dependency=afterany:100 {place.path / 'submit.sbatch'}"
    assert "#SBATCH --array=0-1\n" in (place.path / "needs.sbatch").read_text()
    # what the elements of both do
    run = lambda index, *flags: element.main([str(place.path), str(index), *flags])  # noqa: E731
    assert [run(0, "--needs"), run(1, "--needs"), run(0), run(1)] == [0, 0, 0, 0]
    assert [place.state(e) for e in place.entries()] == ["COMPLETED"] * 2
    given = RunDirectory(place.directory(place.entries()[0])).info()["needs"]
    assert all(need["path"] for need in given)


def test_only_what_is_neither_completed_nor_queued_is_submitted(log, tmp_path, capsys):
    place = submit("seed=range(4)", "name=ok")
    element.main([str(place.path), "1"])
    (tmp_path / "listed").write_text("100|3|PENDING|Resources\n55|0|RUNNING|None\n100|0|RUNNING|None\n")
    capsys.readouterr()
    assert main(["status", str(place.path)]) == 0
    shown = capsys.readouterr().out
    assert (
        "pending (Resources)" in shown
        and "running" in shown
        and "1 completed, 3 waiting" in shown.replace("3 waiting, 1 completed", "1 completed, 3 waiting")
    )
    assert main(["resume", str(place.path)]) == 0
    assert slurm_queue.submissions(place)[-1]["numbers"] == [2]
    assert "#SBATCH --array=2\n" in (place.path / "submit.sbatch").read_text()
    assert main(["cancel", str(place.path)]) == 0
    assert log.read_text().splitlines()[-1] == "scancel 100"  # 101 is not in the queue


def test_no_slurm_here_is_said_before_anything_is_submitted(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["train", "-m", *SLURM, "seed=0,1", "name=ok"]) == 2
    assert "needs sbatch" in capsys.readouterr().err


def test_settings_of_the_pool_are_refused(capsys):
    assert main(["train", "-m", *SLURM, "seed=0,1", "launch.jobs=2", "launch.slurm.nodes=2"]) == 2
    err = capsys.readouterr().err
    assert "max_parallel" in err and "cannot be divided by launch.slurm.nodes=2" in err


# ---- the element -----------------------------------------------------------------------------------------------------


def run_element(place: SweepDirectory, *numbers: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """Element 0 in a process of its own, signalled once its worker works."""
    program = (
        "import sys\nfrom runner.launching import element\n"
        f"element.worker_command = lambda path: [sys.executable, {str(FAKE)!r}, str(path)]\n"
        "sys.exit(element.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(place.path), "0"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "SLURM_JOB_ID": "7", **variables},
    )  # fmt: skip

    def send() -> None:
        deadline = time.monotonic() + 20
        while not list(place.path.glob("jobs/000-*/environment.json")) and time.monotonic() < deadline:
            if process.poll() is not None:
                return
            time.sleep(0.01)
        for number in numbers:
            process.send_signal(number)

    sender = threading.Thread(target=send)
    sender.start()
    out, _ = process.communicate(timeout=60)
    sender.join()
    return subprocess.CompletedProcess(process.args, process.returncode, out)


@pytest.mark.parametrize(
    ("number", "state", "restarts", "requeued"),
    [
        (signal.SIGUSR2, "RUNNING", 0, True),  # before the time limit
        (signal.SIGUSR2, "CANCELLED", 0, False),  # and cancelled while it saved
        (signal.SIGTERM, "RUNNING", 3, True),  # preemption with grace
        (signal.SIGTERM, "CANCELLED", 0, False),  # scancel
        (signal.SIGTERM, "COMPLETING", 0, False),  # requeued by somebody else
        (signal.SIGINT, "RUNNING", 0, False),
        (signal.SIGUSR2, "RUNNING", 19, False),  # attempts are used up
    ],
)
def test_what_a_stop_signal_means(log, number, state, restarts, requeued):
    place = submit("seed=0,1", "name=slow")
    log.unlink()
    done = run_element(place, number, JOB_STATE=state, SLURM_RESTART_COUNT=str(restarts))
    assert done.returncode == 75
    assert place.state(place.entries()[0]) == "STOPPED"
    called = log.read_text().splitlines() if log.exists() else []
    assert ("scontrol requeue 7" in called) == requeued
    assert ("max_attempts=20 are used up" in done.stdout) == (restarts == 19)


def test_too_many_starts_end_the_job(log):
    place = submit("seed=0,1", "name=ok")
    done = run_element(place, SLURM_RESTART_COUNT="20")
    assert done.returncode == 1
    info = RunDirectory(place.directory(place.entries()[0])).info()
    assert info["status"] == "FAILED" and "20 attempts" in info["message"] and info["attempts"] == []


def test_a_lost_expert_fails_its_job_in_a_line(log, monkeypatch, capsys):
    from runner.launching import needs

    def experts(config):
        return [needs.Need.of("expert", config | {"name": "fail", "seed": 9})] if config["name"] == "ok" else []

    monkeypatch.setattr(needs, "needs", experts)
    place = submit("seed=0,1", "name=ok")
    assert element.main([str(place.path), "0", "--needs"]) == 1
    assert element.main([str(place.path), "0"]) == 1
    assert "there is no expert of" in capsys.readouterr().out


def test_ranks_on_several_nodes(monkeypatch):
    monkeypatch.setattr(element, "first_host", lambda: "node7")
    for name, value in {"SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_ID": "41234"}.items():
        monkeypatch.setenv(name, value)
    launch = {"num_processes": 4, "device": "cpu", "threads": 1, "port": None}
    ranks = element.node_environments({"launch": launch})
    wanted = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "21234"}
    assert [{key: rank[key] for key in wanted} for rank in ranks] == [wanted, wanted]
    assert [(rank["RANK"], rank["LOCAL_RANK"]) for rank in ranks] == [("2", "0"), ("3", "1")]


def test_indices_are_written_short():
    assert slurm.compress([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert json.dumps(slurm.compress([3])) == '"3"'
