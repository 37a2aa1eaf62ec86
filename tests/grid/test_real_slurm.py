"A real Slurm on this machine: a small grid through SlurmProvider and through the exported array script, a killed job, and resuming."

import os
import shutil
import socket
import subprocess
import time

import pytest
from grid_runs import FOUR, results

from ddrobust_nb.grid.machines import Machines
from ddrobust_nb.grid.notebook import is_done
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.run import run_grid
from ddrobust_nb.grid.slurm import array_script

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
pytestmark = pytest.mark.slow

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ctld}
SlurmdPort={slurmd}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
JobRequeue=1
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    "munged, slurmctld and slurmd of our own, taken down at the end"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if missing := [n for n in NEEDED if not shutil.which(n, path=path)]:
        pytest.skip(
            f"{', '.join(missing)} not installed: this test needs a Slurm (Debian: apt install slurm-wlm munge)"
        )
    if os.geteuid():
        pytest.skip("slurmctld and slurmd have to be started by root")
    folder, host, before = (
        tmp_path_factory.mktemp("slurm"),
        socket.gethostname().split(".")[0],
        dict(os.environ),
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128)), (folder / "munge.key").chmod(0o600)
    folder.chmod(0o755)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1000
    (folder / "slurm.conf").write_text(
        CONF.format(
            host=host, folder=folder, ctld=free_port(), slurmd=free_port(), cpus=os.cpu_count(), memory=memory
        )
    )
    os.environ |= dict(PATH=path, SLURM_CONF=str(folder / "slurm.conf"))
    daemons = []

    def start(*argv, log):
        daemons.append(subprocess.Popen(argv, stdout=open(folder / log, "w"), stderr=subprocess.STDOUT))

    try:
        start(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munge.pid",
            f"--seed-file={folder}/munge.seed",
            f"--log-file={folder}/munge.log",
            log="munged.out",
        )
        wait_for(lambda: (folder / "munge.socket").exists(), 20, folder)
        start("slurmctld", "-D", "-i", log="slurmctld.out")
        start("slurmd", "-D", "-N", host, log="slurmd.out")
        wait_for(lambda: "idle" in output_of("sinfo", "-h", "-o", "%t"), 60, folder)
        yield folder
    finally:
        subprocess.run(["scancel", "-u", "root"], capture_output=True)
        for d in reversed(daemons):
            d.terminate()
        for d in daemons:
            d.wait(20)
        os.environ.clear(), os.environ.update(before)


def output_of(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout


def wait_for(condition, seconds, folder=None):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            logs = (
                "\n".join(
                    f"== {p.name}\n{p.read_text()[-2000:]}"
                    for p in sorted(folder.glob("*.log")) + sorted(folder.glob("*.out"))
                )
                if folder
                else ""
            )
            raise AssertionError(f"not after {seconds} s\n{logs}")
        time.sleep(0.3)


def test_through_the_provider(slurm, undisturbed, tmp_path):
    plan = plan_grid(FOUR, store=tmp_path / "store", device="cpu")
    machines = Machines(
        engine="slurm",
        workers=2,
        threads=1,
        gpus=0,
        partition="all",
        walltime="00:30:00",
        address="127.0.0.1",
        folder=str(tmp_path / "parsl"),
        worker_init="export DDROBUST_COMPILE=never",
    )
    outcome = run_grid(plan, machines)
    assert outcome.count() == {"done": 4}, outcome.errors
    assert results(tmp_path / "store") == undisturbed[2]


def test_through_the_array_script_with_a_killed_job(slurm, undisturbed, tmp_path):
    "A task is cancelled in the middle; the same script, submitted again, finishes exactly the rest"
    store = tmp_path / "store; touch x"
    plan = plan_grid(FOUR, store=store, device="cpu")
    script = array_script(
        plan,
        tmp_path / "grid.sh",
        Machines(
            engine="slurm",
            workers=1,
            threads=1,
            gpus=0,
            partition="all",
            walltime="00:30:00",
            worker_init="export DDROBUST_COMPILE=never DDROBUST_AUTOSAVE=0",
        ),
    )
    job = output_of("sbatch", "--parsable", str(script)).strip()
    assert job.isdigit()
    wait_for(lambda: (store / "distil").is_dir(), 120, slurm)
    (
        subprocess.run(["scancel", "--signal=KILL", "--full", f"{job}_0"], check=True),
        subprocess.run(["scancel", job], check=True),
    )
    wait_for(lambda: not output_of("squeue", "-h"), 60, slurm)
    finished = {p: p.stat().st_ino for p in store.glob("*/[!.]*/card.json")}
    assert not all(is_done(c.out) for c in plan.cells), "the job was done before it could be killed"
    job = output_of("sbatch", "--parsable", str(script)).strip()
    wait_for(lambda: not output_of("squeue", "-h"), 400, slurm)
    logs = "\n".join(p.read_text() for p in tmp_path.glob("grid.*.log"))
    assert all(is_done(c.out) for c in plan.cells), logs
    assert {p: p.stat().st_ino for p in finished} == finished and results(store) == undisturbed[2]
    assert not list(tmp_path.rglob("x"))
