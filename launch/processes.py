"""Who am I among the processes of a run, and where did they say so? Then jax connects them.

`discover` reads the environment that SLURM, Open MPI, Cloud TPU, GKE or a user sets. It does so itself, not by jax's
detection, because it must know the coordinator before jax does (`launch.roll_call` names who is missing), because a
task of SLURM with several GPUs must use all of them, and because half an environment must be an error: else each of N
processes would train a copy of its own.
"""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping

from launch.memory import has_tpu
from launch.roll_call import LOOPBACK, address, roll_call
from train.peers import START_AGAIN, Stopped, begin, peers

# In a child of a supervisor, of --processes or of --verify_resume: the command line of its parent, whose death ends its
# input.
CHILD = "TESSERA_CHILD"
SINCE = "TESSERA_SINCE"  # set by a supervisor that starts a run again: Unix time of the last record before it died
TO_SAVE = 120.0  # seconds that such an orphan has to save and stop
COORDINATOR, COUNT, INDEX = "TESSERA_COORDINATOR", "TESSERA_PROCESSES", "TESSERA_PROCESS"
CONNECTING = 300.0  # seconds that processes which have met have to wake up jax: a busy machine takes its time
TPU_PORT = 8482
FIRST_PORT, PORTS = 61440, 4096  # a job's number chooses one of the highest ports, so that two jobs seldom meet
ALONE = "or --processes=1 where this process is to train alone"
Attribute = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of its run."""

    source: str  # who said so
    index: int
    count: int
    coordinator: str  # host:port of process 0
    hosts: tuple[str, ...] = ()  # of each process, where they are known
    local_devices: tuple[int, ...] | None = None  # GPUs of this process; None: all that it sees


def discover(environ: Mapping[str, str], attribute: Attribute | None = None) -> Processes | None:
    """This process among those of its run, or None where it is alone.

    `TESSERA_COORDINATOR` (host:port of process 0), `TESSERA_PROCESSES` and `TESSERA_PROCESS` come first; each of them
    that is not set is what a launcher says, the last one also the index of a pod of an indexed Kubernetes job.

    Args:
        attribute: reads an attribute of a Google Cloud machine; None: there is no TPU, so Cloud TPU is not asked.

    Raises:
        ValueError: several processes, of which something is not known: what is set, and what is missing.
    """
    own = {name: environ[name] for name in (COORDINATOR, COUNT, INDEX) if environ.get(name)}
    launched = None
    if len(own) < 3:
        launched = _slurm(environ) or _open_mpi(environ) or (_cloud_tpu(environ, attribute) if attribute else None)
        pod = environ.get("JOB_COMPLETION_INDEX")
        if own:
            said = {COORDINATOR: launched.coordinator, COUNT: launched.count, INDEX: launched.index} if launched else {}
            said |= {INDEX: pod} if pod and not launched else {}
            own = {**{name: str(value) for name, value in said.items() if value != ""}, **own}
            _require(own, (COORDINATOR, COUNT, INDEX), "set all three, or none")
        elif launched is None and pod:
            raise ValueError(
                f"JOB_COMPLETION_INDEX={pod}: this is a pod of an indexed Kubernetes job; {COORDINATOR} (such as "
                f"JOB-0.SUBDOMAIN:8476) and {COUNT} are not set: set both in all pods, {ALONE}"
            )
        elif launched is None and environ.get("JAX_COORDINATOR_ADDRESS"):
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is set, {COUNT} and {INDEX} are not: set {COORDINATOR} and both, {ALONE}"
            )
    if own:
        index, count = _number(own, INDEX), _number(own, COUNT)
        if count < 1 or not 0 <= index < count:
            raise ValueError(f"{INDEX}={index} and {COUNT}={count}: use an index from 0 to the number less 1")
        address(own[COORDINATOR])
        local = launched.local_devices if launched else None
        return Processes(COORDINATOR, index, count, own[COORDINATOR], (), local) if count > 1 else None
    if launched and not launched.coordinator:
        raise ValueError(
            f"{launched.source} says process {launched.index} of {launched.count}, but not where process 0 is: set "
            f"{COORDINATOR}=HOST:PORT, {ALONE}"
        )
    return launched


def initialize(found: Processes, *, start_timeout: float, heartbeat_timeout: float) -> None:
    """Meets the others and connects jax to them: before jax looks at its devices.

    Raises:
        OSError, ValueError: as `roll_call`.
    """
    roster = roll_call(
        found.coordinator, found.index, found.count, timeout=start_timeout, hosts=found.hosts
    )  # before the seconds that jax takes to wake up
    import jax

    # It takes SIGTERM away from this process, to say later, in training, that it came: `train.loop` hears it itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            found.coordinator,
            found.count,
            found.index,
            found.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=round(max(CONNECTING, start_timeout)),
            heartbeat_timeout_seconds=round(heartbeat_timeout),
            coordinator_bind_address=found.coordinator if address(found.coordinator)[0] in LOOPBACK else None,
        )
    except RuntimeError as error:
        raise TimeoutError(
            f"the processes met at {found.coordinator}, but jax did not connect them: {error}"
        ) from error
    begin([str(one) for one in roster], found.index, heartbeat_timeout)


def together(
    run: Callable[[], int], processes: int, devices: int, start_timeout: float, heartbeat_timeout: float
) -> int:
    """`run()`, as one of the processes of its run where it has some: the exit code, of all where one fails."""
    from launch.cli import explain

    follow_parent()
    with _stoppable():
        found = None if processes == 1 else discover(os.environ, None if devices else machine_attribute())
        if found is None:
            return run()
        try:
            initialize(found, start_timeout=start_timeout, heartbeat_timeout=heartbeat_timeout)
            code = run()
            peers().finish()
            return code
        except BaseException as error:
            if not peers().several:  # they have not met
                raise
            code, why = None, f"{type(error).__name__}: {error}"
            try:
                code = explain(error)
                if code is None:
                    traceback.print_exc()
                    peers().lost(why)
            finally:  # whatever becomes of the explanation: the others would wait for ever
                peers().leave(1 if code is None else code, why)
            raise


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends this process and its peers where the training loop does not hear it; alone it raises Stopped.

    Python calls a handler when the main thread is back from what it does, which may be a wait of hours for a process
    that still prepares the data. With peers a thread answers, which is told of the signal at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    why = "stopped by SIGTERM outside of the training steps: the same command goes on"

    def stop(number: int, _: object) -> None:
        if not peers().several:
            raise Stopped(why)
        threading.Event().wait()  # for `answer` to end this process: what goes on here would only fail meanwhile

    def answer() -> None:
        for number in iter(lambda: told.recv(1), b""):
            if ord(number) == signal.SIGTERM and peers().several and signal.getsignal(signal.SIGTERM) is stop:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    print(f"tessera: {why}", file=sys.stderr)
                peers().leave(START_AGAIN, why)

    told, tell = socket.socketpair()
    tell.setblocking(False)
    before, waker = signal.signal(signal.SIGTERM, stop), signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=answer, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        tell.close()


def follow_parent() -> None:
    """In a child: asks itself to stop when the parent is gone, whatever killed it."""
    if not os.environ.get(CHILD):
        return

    def follow() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TO_SAVE)
        os._exit(START_AGAIN)

    threading.Thread(target=follow, daemon=True).start()


def machine_attribute() -> Attribute | None:
    """Reads what Google Cloud says of this machine, or None where it has no TPU chip."""
    if not has_tpu():
        return None

    def attribute(name: str) -> str | None:
        url = f"http://metadata.google.internal/computeMetadata/v1/instance/attributes/{name}"
        try:
            request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read().decode()
        except OSError:  # no such attribute, or no Google Cloud
            return None

    return attribute


def _slurm(environ: Mapping[str, str]) -> Processes | None:
    """A task of `srun`."""
    counted = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    if not environ.get(counted) or (count := _number(environ, counted)) == 1:
        return None
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")
    _require(environ, needed, f"{counted}={count}, start with `srun tessera train …`, {ALONE}")
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,]*))?", environ["SLURM_STEP_NODELIST"])
    host = "".join(part or "" for part in first.groups()) if first else environ["SLURM_STEP_NODELIST"]
    step = _number(environ, "SLURM_STEP_ID") if environ.get("SLURM_STEP_ID") else 0
    port = FIRST_PORT + (_number(environ, "SLURM_JOB_ID") + step) % PORTS
    # "2(x3),1": two tasks on each of three nodes, one on the last.
    per_node = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(number) for number, times in per_node for _ in range(int(times or 1))]
    node = _number(environ, "SLURM_NODEID") if environ.get("SLURM_NODEID") else 0
    here = tasks[node] if node < len(tasks) else 1
    local = None if environ.get("SLURM_GPUS_PER_TASK") else _share(environ, _number(environ, "SLURM_LOCALID"), here)
    return Processes("SLURM", _number(environ, "SLURM_PROCID"), count, f"{host}:{port}", (), local)


def _open_mpi(environ: Mapping[str, str]) -> Processes | None:
    """A rank of `mpirun`. Open MPI 4 says where it was started; 5 does not."""
    if not environ.get("OMPI_COMM_WORLD_SIZE") or (count := _number(environ, "OMPI_COMM_WORLD_SIZE")) == 1:
        return None
    needed = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    _require(environ, needed, f"OMPI_COMM_WORLD_SIZE={count}, start with mpirun, {ALONE}")
    started = re.match(r"(\d+)\..*?tcp6?://\[?([^,\]]+?)[,:\]]", environ.get("OMPI_MCA_orte_hnp_uri", ""))
    coordinator = f"{started[2]}:{FIRST_PORT + int(started[1]) // 4096 % PORTS}" if started else ""
    rank, local_rank, here = (_number(environ, name) for name in needed)
    return Processes("Open MPI", rank, count, coordinator, (), _share(environ, local_rank, here))


def _cloud_tpu(environ: Mapping[str, str], attribute: Attribute) -> Processes | None:
    """A host of a TPU slice, or of several: GKE sets variables, a TPU VM has attributes."""
    facts = dict(environ)
    names = facts.get("TPU_PROCESS_ADDRESSES") or facts.get("TPU_WORKER_HOSTNAMES")
    if not names and not facts.get("TPU_SKIP_MDS_QUERY") and (names := attribute("worker-network-endpoints")):
        facts["TPU_WORKER_ID"] = attribute("agent-worker-number") or ""
        listed = re.findall(r"^\s*(MEGASCALE_\w+): '?([^'\n]*)'?", attribute("tpu-env") or "", re.MULTILINE)
        facts = {**dict(listed), **facts}
    if not names:
        return None
    hosts = tuple(name.split(":")[2] if name.count(":") == 2 else name.split(":")[0] for name in names.split(","))
    slices = _number(facts, "MEGASCALE_NUM_SLICES") if facts.get("MEGASCALE_NUM_SLICES") else 1
    if slices * len(hosts) == 1:
        return None
    several = ("MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS") if slices > 1 else ()
    _require(facts, ("TPU_WORKER_ID", *several), f"there are {slices} TPU slice(s) of {len(hosts)} host(s)")
    index = _number(facts, "TPU_WORKER_ID") + (len(hosts) * _number(facts, several[0]) if several else 0)
    first = facts[several[1]].split(":")[0] if several else hosts[0]
    return Processes("Cloud TPU", index, slices * len(hosts), f"{first}:{TPU_PORT}", () if several else hosts)


def _share(environ: Mapping[str, str], local: int, here: int) -> tuple[int, ...] | None:
    """The GPUs of process `local` of the `here` on this host: all, or an equal part of the visible ones."""
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if here == 1 or len(visible) == 1:  # one GPU is visible where the launcher has bound it
        return None
    if not visible:
        return (local,)
    if len(visible) % here:
        raise ValueError(
            f"{here} processes on this host cannot share {len(visible)} GPUs evenly: use a divisor of them"
        )
    each = len(visible) // here
    return tuple(range(local * each, (local + 1) * each))


def _require(environ: Mapping[str, str], names: tuple[str, ...], hint: str) -> None:
    if missing := [name for name in names if not environ.get(name)]:
        there = ", ".join(f"{name}={environ[name]}" for name in names if environ.get(name)) or "none of the rest"
        raise ValueError(f"{', '.join(missing)} not set ({there} is): {hint}")


def _number(environ: Mapping[str, str], name: str) -> int:
    if not environ[name].strip().isdigit():
        raise ValueError(f"{name}={environ[name]!r} is not a whole number")
    return int(environ[name])
