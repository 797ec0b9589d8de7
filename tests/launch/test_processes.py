"""Who a process is, by the environment of each launcher, and that nobody trains alone who should not."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from launch import children, processes
from launch.processes import Processes, discover
from train.peers import START_AGAIN, Peers, Stopped

OWN = {"TESSERA_COORDINATOR": "10.0.0.1:8476", "TESSERA_PROCESSES": "4", "TESSERA_PROCESS": "2"}
SLURM = {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_ID": "1",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[003-004,7]-ib,gpu1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a.svc,b.svc,c.svc,d.svc", "TPU_WORKER_ID": "3"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s0-a.svc:8080"}


def nothing(name):
    return None


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        (OWN, Processes("TESSERA_COORDINATOR", 2, 4, "10.0.0.1:8476")),
        ({**OWN, **SLURM}, Processes("TESSERA_COORDINATOR", 2, 4, "10.0.0.1:8476")),
        ({**OWN, "TESSERA_PROCESSES": "1", "TESSERA_PROCESS": "0"}, None),
        # The pod of an indexed job of Kubernetes knows its number.
        (
            {**without(OWN, "TESSERA_PROCESS"), "JOB_COMPLETION_INDEX": "1"},
            Processes("TESSERA_COORDINATOR", 1, 4, "10.0.0.1:8476"),
        ),
        # 61440 + (70000 + 1) mod 4096; the second of two tasks of the host.
        (SLURM, Processes("SLURM", 3, 5, "node003-ib:61809", (), (1,))),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Processes("SLURM", 3, 5, "node003-ib:61809", (), (2, 3))),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "1"}, Processes("SLURM", 3, 5, "node003-ib:61809")),
        ({**SLURM, "SLURM_GPUS_PER_TASK": "2"}, Processes("SLURM", 3, 5, "node003-ib:61809")),
        # One task a host uses all its GPUs.
        ({**SLURM, "SLURM_NODEID": "2", "SLURM_PROCID": "4"}, Processes("SLURM", 4, 5, "node003-ib:61809")),
        ({**SLURM, "SLURM_STEP_NODELIST": "a1,b2", "SLURM_GPUS_PER_TASK": "1"}, Processes("SLURM", 3, 5, "a1:61809")),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
        # 1531576320 / 4096 = 373920, mod 4096 = 1184
        (MPI, Processes("Open MPI", 5, 8, "10.96.0.1:62624", (), (1,))),
        ({**MPI, "OMPI_COMM_WORLD_SIZE": "1"}, None),
        (
            {**without(MPI, "OMPI_MCA_orte_hnp_uri"), "TESSERA_COORDINATOR": "h:1"},
            Processes("TESSERA_COORDINATOR", 5, 8, "h:1", (), (1,)),
        ),
        (GKE, Processes("Cloud TPU", 3, 4, "a.svc:8482", ("a.svc", "b.svc", "c.svc", "d.svc"))),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({**GKE, **SLICES}, Processes("Cloud TPU", 7, 8, "s0-a.svc:8482")),
        ({**GKE, "JOB_COMPLETION_INDEX": "3"}, Processes("Cloud TPU", 3, 4, "a.svc:8482", tuple("abcd"))),
    ],
)
def test_environments(environ, found):
    got = discover(environ, nothing)
    if found and found.hosts == tuple("abcd"):
        found = Processes(found.source, found.index, found.count, found.coordinator, got.hosts)
    assert got == found


def test_a_tpu_machine_is_asked_for_its_attributes():
    said = {
        "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
        "agent-worker-number": "1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5e-16'\nMEGASCALE_NUM_SLICES: '1'\n",
    }
    assert discover({}, said.get) == Processes("Cloud TPU", 1, 2, "10.0.0.5:8482", ("10.0.0.5", "10.0.0.6"))
    said["tpu-env"] = "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1'\n"
    assert discover({}, said.get) == Processes("Cloud TPU", 5, 6, "10.0.0.1:8482")
    assert discover({"TPU_SKIP_MDS_QUERY": "1"}, said.get) is None
    assert discover({}, None) is None and discover(GKE, None) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (without(OWN, "TESSERA_PROCESS"), r"^TESSERA_PROCESS not set \(TESSERA_COORDINATOR=10.0.0.1:8476, TESSERA_PR"),
        ({"TESSERA_PROCESS": "1"}, r"^TESSERA_COORDINATOR, TESSERA_PROCESSES not set \(TESSERA_PROCESS=1 is\)"),
        ({**OWN, "TESSERA_PROCESS": "4"}, "TESSERA_PROCESS=4 and TESSERA_PROCESSES=4: use an index from 0"),
        ({**OWN, "TESSERA_PROCESS": "two"}, "TESSERA_PROCESS='two' is not a whole number"),
        ({**OWN, "TESSERA_COORDINATOR": "10.0.0.1"}, "'10.0.0.1' is not HOST:PORT"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, "SLURM_PROCID, SLURM_LOCALID, SLURM_STEP_NODELIST not set .*srun"),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2"}, "2 processes on this host cannot share 3 GPUs"),
        (without(MPI, "OMPI_MCA_orte_hnp_uri"), "Open MPI says process 5 of 8, but not where process 0 is: set TESS"),
        (without(MPI, "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_RANK not set"),
        ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX=0: this is a pod .* --processes=1"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_COORDINATOR_ADDRESS is set, TESSERA_PROCESSES and TESSERA_PROCESS"),
        (without(GKE, "TPU_WORKER_ID"), "TPU_WORKER_ID not set"),
        ({**GKE, **without(SLICES, "MEGASCALE_SLICE_ID")}, "MEGASCALE_SLICE_ID not set .*2 TPU slice"),
    ],
)
def test_half_an_environment_is_an_error(environ, message):
    with pytest.raises(ValueError, match=message):
        discover(environ, nothing)


def test_a_signal_that_came_while_children_were_started_reaches_all():
    sleeping = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    assert children._ended(sleeping, [signal.SIGTERM]) == START_AGAIN
    assert all(child.returncode == -signal.SIGTERM for child in sleeping)


BLOCKED = """
import hashlib
from types import SimpleNamespace
from launch import processes
group = SimpleNamespace(several=True, leave=lambda code, why: processes.os._exit(code))
processes.peers = lambda: group
with processes._stoppable():
    print("waits", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 30_000_000)  # in C: no handler of Python is called before it ends
"""


def test_a_signal_ends_peers_while_the_main_thread_waits_in_c():
    with subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"waits\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(5) == START_AGAIN
        finally:
            process.kill()


def test_a_signal_raises_where_a_process_is_alone():
    with pytest.raises(Stopped, match="SIGTERM"), processes._stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_place_that_all_have_passed_leaves_no_key():
    """A store in memory; process 1 wrote its values before."""
    keys = {f"tessera/place/{place}/1": f"one {place}" for place in range(3)}
    deleted = []
    store = SimpleNamespace(
        key_value_set=keys.__setitem__,
        key_value_delete=lambda key: deleted.append(key) or keys.pop(key),
        key_value_dir_get=lambda folder: [(key, value) for key, value in keys.items() if key.startswith(f"{folder}/")],
        wait_at_barrier=lambda *_: None,
    )
    group = Peers()
    group.names, group.several, group._store = ["process 0", "process 1"], True, store
    for place in range(3):
        assert group.gather("a test", f"zero {place}") == [f"zero {place}", f"one {place}"]
    assert deleted == ["tessera/place/0/0", "tessera/place/1/0"] and "tessera/place/2/0" in keys
