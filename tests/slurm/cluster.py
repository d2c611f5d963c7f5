"""A real SLURM on this machine: controller, accounting and two nodes, one of which has GPUs; as root, on Debian.

All of it is in one temporary directory, on free ports of 127.0.0.1, as child processes of the one that starts it; a
SLURM that the machine has already is neither used nor disturbed. `python tests/slurm/cluster.py` keeps one up until
Ctrl-C.
The GPUs are names only: SLURM hands them out and accounts for them, and torch does not see them.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurmdbd", "slurm-client", "munge", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd")
CPU_PARTITION, GPU_PARTITION = "short", "accel"  # names that no site-independent file should know
CPU_NODE, GPU_NODE = "n1", "g1"
GPUS = ("/dev/null", "/dev/zero")  # a gres needs a character device, and nothing opens it
DATABASE = "accounting"
ANSWER_SECONDS = 60.0
CORES = 4  # of a node; CLUSTER_THREADS of the rules

os.environ["PATH"] += ":/usr/sbin:/sbin"  # where the daemons are


@dataclass(frozen=True)
class Cluster:
    """`environment` makes SLURM's commands talk to this cluster; `partitions` names its partitions to Snakemake."""

    folder: Path
    environment: dict[str, str]

    @property
    def partitions(self) -> Path:
        return self.folder / "partitions.yaml"

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            arguments, env=self.environment, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def install() -> None:
    """Install the Debian packages that are missing; none of their services is started."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if not shutil.which("apt-get"):
        sys.exit(f"error: {', '.join(PROGRAMS)} not all found in PATH, expected them or a Debian to install them on")
    policy = Path("/usr/sbin/policy-rc.d")  # asked before a package starts its service
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
    finally:
        if ours:
            policy.unlink()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Bring a cluster up; afterwards cancel its jobs, stop its daemons and remove its files.

    SIGTERM is taken for Ctrl-C, so that this is done then, too.
    """
    if os.geteuid():
        sys.exit("error: not root, expected root: slurmd starts jobs in their user's name")
    install()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # the database is another user's
    cluster = _prepare(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _bring_up(cluster, daemons)
        yield cluster
    finally:
        _tear_down(cluster, daemons)


def _prepare(folder: Path) -> Cluster:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    # In a job Snakemake's plugin takes every SLURM_* variable away before it calls srun.
    wrapper = folder / "bin/srun"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    wrapper.chmod(0o755)
    environment["PATH"] = f"{wrapper.parent}:{environment['PATH']}"
    cluster = Cluster(folder, environment)
    cluster.partitions.write_text(
        f"partitions:\n  {CPU_PARTITION}: {{}}\n  {GPU_PARTITION}: {{max_gpu: {len(GPUS)}}}\n"
    )
    return cluster


def _bring_up(cluster: Cluster, daemons: list["subprocess.Popen[bytes]"]) -> None:
    folder, environment = cluster.folder, cluster.environment

    def start(*command: str, until: Callable[[], object]) -> None:
        name = command[0]
        with (folder / f"{name}.out").open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, and the daemons are stopped in order afterwards.
            daemon = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        daemons.append(daemon)
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            if daemon.poll() is not None:
                sys.exit(f"error: {name} ended with status {daemon.returncode}:\n{_last_lines(folder, name)}")
            try:
                if until():
                    return
            except (RuntimeError, subprocess.TimeoutExpired):
                pass
            if time.monotonic() > deadline:
                sys.exit(f"error: {name} does not answer within {ANSWER_SECONDS:.0f} s:\n{_last_lines(folder, name)}")
            time.sleep(0.2)

    munge = folder / "munge.socket"
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    options = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    start("munged", "--foreground", "--force", f"--socket={munge}", *options, until=munge.exists)

    password = secrets.token_hex(16)
    ports = dict(zip(("controller", "accounting", "database", CPU_NODE, GPU_NODE), _free_ports(5), strict=True))
    _start_database(folder / "database", start, cluster, ports["database"], password)
    _write_configuration(folder, ports, munge, password)
    start("slurmdbd", "-D", until=lambda: cluster.command("sacctmgr", "--noheader", "list", "user"))
    for entry in (["cluster", "test"], ["account", "lab"], ["user", "root", "account=lab"]):
        cluster.command("sacctmgr", "--immediate", "add", *entry)
    start("slurmctld", "-D", until=lambda: cluster.command("sinfo", "--noheader"))
    for node in (CPU_NODE, GPU_NODE):
        start("slurmd", "-D", "-N", node, until=lambda node=node: _is_idle(cluster, node))


def _start_database(folder: Path, start: Callable[..., None], cluster: Cluster, port: int, password: str) -> None:
    folder.mkdir()
    shutil.chown(folder, "mysql", "mysql")  # a database does not run as root
    common = ["--no-defaults", "--user=mysql", f"--datadir={folder / 'data'}"]
    cluster.command("mariadb-install-db", *common, "--auth-root-authentication-method=socket", "--skip-test-db")
    client = ["--no-defaults", f"--socket={folder / 'socket'}"]
    start(
        "mariadbd", *common, "--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder / 'socket'}",
        f"--pid-file={folder / 'pid'}", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
        until=lambda: cluster.command("mariadb-admin", *client, "ping"),
    )  # fmt: skip
    statements = (
        f"CREATE DATABASE {DATABASE}; GRANT ALL ON {DATABASE}.* TO slurm@'127.0.0.1' IDENTIFIED BY '{password}';"
    )
    subprocess.run(["mariadb", *client], input=statements, text=True, check=True)


def _write_configuration(folder: Path, ports: dict[str, int], munge: Path, password: str) -> None:
    host = socket.gethostname().split(".")[0]
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    # As many as a job asks for on a cluster, whatever this machine has: SLURM would let it wait for ever.
    node = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs={CORES} RealMemory={pages * page * 9 // 10 >> 20}"
    for name in ("state", CPU_NODE, GPU_NODE):
        (folder / name).mkdir()
    # Processes are followed through /proc: neither systemd nor cgroups are needed. OverMemoryKill does a cgroup's work,
    # counting a page that n processes share n-fold less (Pss).
    text = f"""
        ClusterName=test
        SlurmctldHost={host}(127.0.0.1)
        SlurmctldPort={ports["controller"]}
        SlurmUser=root
        AuthType=auth/munge
        AuthInfo=socket={munge}
        CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        JobAcctGatherType=jobacct_gather/linux
        JobAcctGatherFrequency=task=1
        JobAcctGatherParams=UsePss,OverMemoryKill
        MpiDefault=none
        SwitchType=switch/none
        PropagateResourceLimits=NONE
        StateSaveLocation={folder / "state"}
        SlurmdSpoolDir={folder}/%n
        SlurmctldPidFile={folder / "slurmctld.pid"}
        SlurmdPidFile={folder}/slurmd-%n.pid
        SlurmctldLogFile={folder / "slurmctld.log"}
        SlurmdLogFile={folder}/slurmd-%n.log
        SlurmdParameters=config_overrides
        KillWait=5
        SelectType=select/cons_tres
        SelectTypeParameters=CR_CPU_Memory
        AccountingStorageType=accounting_storage/slurmdbd
        AccountingStorageHost=127.0.0.1
        AccountingStoragePort={ports["accounting"]}
        AccountingStoragePass={munge}
        AccountingStorageTRES=gres/gpu
        AccountingStoreFlags=job_comment
        AccountingStorageEnforce=associations
        GresTypes=gpu
        NodeName={CPU_NODE} Port={ports[CPU_NODE]} {node}
        NodeName={GPU_NODE} Port={ports[GPU_NODE]} {node} Gres=gpu:{len(GPUS)}
        PartitionName={CPU_PARTITION} Nodes={CPU_NODE} Default=YES DefMemPerCPU=500 MaxTime=1-00:00:00
        PartitionName={GPU_PARTITION} Nodes={GPU_NODE} DefMemPerCPU=500 MaxTime=1-00:00:00
    """
    (folder / "slurm.conf").write_text(textwrap.dedent(text))
    gres = [f"NodeName={GPU_NODE} Name=gpu File={device}\n" for device in GPUS]
    (folder / "gres.conf").write_text("".join(gres))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    text = f"""
        AuthType=auth/munge
        AuthInfo=socket={munge}
        DbdHost={host}
        DbdAddr=127.0.0.1
        DbdPort={ports["accounting"]}
        CommunicationParameters=NoInAddrAny
        SlurmUser=root
        StorageType=accounting_storage/mysql
        StorageHost=127.0.0.1
        StoragePort={ports["database"]}
        StorageUser=slurm
        StoragePass={password}
        StorageLoc={DATABASE}
        PidFile={folder / "slurmdbd.pid"}
        LogFile={folder / "slurmdbd.log"}
    """
    (folder / "slurmdbd.conf").touch(0o600)
    (folder / "slurmdbd.conf").write_text(textwrap.dedent(text))


def _tear_down(cluster: Cluster, daemons: list["subprocess.Popen[bytes]"]) -> None:
    if any("slurmd" in daemon.args for daemon in daemons):  # the processes of a job are no children of slurmd
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            cluster.command("scancel", "--user=root")
            deadline = time.monotonic() + ANSWER_SECONDS
            while cluster.command("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.5)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    shutil.rmtree(cluster.folder)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _is_idle(cluster: Cluster, node: str) -> bool:
    return cluster.command("sinfo", "--noheader", "--nodes", node, "--format=%T").strip() == "idle"


def _last_lines(folder: Path, daemon: str) -> str:
    logs = [*sorted(folder.glob(f"{daemon}*.log")), folder / f"{daemon}.out"]
    return "\n".join(line for log in logs if log.exists() for line in log.read_text().splitlines()[-5:])


if __name__ == "__main__":
    with running_cluster() as cluster:
        print(
            cluster.command("sinfo"),
            f"export SLURM_CONF={cluster.environment['SLURM_CONF']} PATH={cluster.folder}/bin:$PATH",
            f"snakemake --workflow-profile workflow/profiles/slurm --slurm-partition-config {cluster.partitions}",
            sep="\n",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            signal.pause()
