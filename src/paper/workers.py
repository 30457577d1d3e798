"""Who computes the pieces of an attack: this process, several processes, or a Ray cluster. The bytes are the same.

It is a setting of the machine and changes no result, so it is no parameter of the experiment. Ray (the extra `cluster`)
starts the processes, finds GPUs, and computes a piece again where its worker or machine is lost.
"""

import copy
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pickle import PicklingError

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from multishield.errors import UserError, reason_of
from multishield.forward import device
from multishield.resume import Each

# A worker's arithmetic and memory are as here; but each has one thread: more would wait for each other.
AS_HERE = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ONE_THREAD |= {"OMP_DYNAMIC": "false", "MKL_DYNAMIC": "false"}
# Ray tells nobody that it is used, writes no crash where a kernel is told to end, and does not wait for its own events.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
QUIET |= {"RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1", "RAY_task_events_report_interval_ms": "0"}
# Its word about a worker that died would stand in an executed notebook, although the piece is computed again.
QUIET |= {"RAY_DEDUP_LOGS_SKIP_REGEX": "."}


@dataclass(frozen=True)
class Workers:
    """Address of a Ray cluster ("" for this machine), and processes on this machine (None: one per GPU or core)."""

    address: str = ""
    count: int | None = 1


def setting() -> Workers:
    """MULTISHIELD_WORKERS, by default this process. Raises UserError for another form."""
    who = os.environ.get("MULTISHIELD_WORKERS") or "1"
    if who != "1" and " " in sys.executable:  # Ray would wait for them for ever
        given = f"Ray starts no workers of {sys.executable}, whose path has a space"
        raise UserError(f"{given}; make the environment elsewhere, by `make VENV=/path`")
    if re.fullmatch(r"0*[1-9]\d*|local", who):
        return Workers(count=None if who == "local" else int(who))
    if re.fullmatch(r"[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+", who):
        return Workers(who, None)
    accepted = "a number of processes from 1, 'local' for one per GPU or core, or the HOST:PORT of a Ray cluster"
    raise UserError(f"MULTISHIELD_WORKERS is {who!r}; accepted are {accepted}")


def each() -> Each:
    """How pieces are computed by the workers that are set: `map`, or `over_ray` for them."""
    workers = setting()
    return map if workers == Workers() else partial(over_ray, workers)


def over_ray(workers: Workers, work: partial, pieces: Iterable) -> Iterator:
    """Compute `work`, a partial of a module's function, of each piece; yields results as they come, in any order.

    Pieces are picked late. Raises UserError if `work` raised one, failed, or lost its worker often, or none is there.
    """
    ray = _started(workers)
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))  # a worker has one, where there are any
    slots, task = max(1, gpus or int(total.get("CPU", 1))), ray.remote(_compute)
    task = task.options(num_cpus=1, num_gpus=min(1, gpus), max_retries=3)
    try:
        sent = ray.put(_on(work, torch.device("cpu")))
    except (TypeError, RuntimeError, PicklingError) as error:
        raise UserError(f"a model cannot be sent to workers ({reason_of(error)}); unset MULTISHIELD_WORKERS") from None
    waiting, running = iter(pieces), []
    try:
        while True:
            while len(running) < slots and (piece := next(waiting, None)) is not None:
                running.append(task.remote(sent, piece))
            if not running:
                return
            ready, running = ray.wait(running)
            yield _result(ray, ready[0])
    finally:
        for handle in running:
            ray.cancel(handle, force=True)


def _compute(work: Callable, piece):
    """In a worker: models go to its device, and a GPU convolves in full precision."""
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    return _on(work, device())(piece)


def _on(work, device: torch.device):
    """The same work with copies of its models on a device."""
    if isinstance(work, partial):
        return partial(work.func, *(_on(argument, device) for argument in work.args), **work.keywords)
    return _plain_copy(work).to(device) if isinstance(work, nn.Module) else work


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy whose weights are plain, for weight_norm, spectral_norm and other parametrizations cannot be sent."""
    for part in model.modules():  # a weight that a hook computes before each pass
        vars(part).update({name: value.detach() for name, value in vars(part).items() if isinstance(value, Tensor)})
    model = copy.deepcopy(model)
    for part in filter(parametrize.is_parametrized, list(model.modules())):
        weights = {name: getattr(part, name).detach() for name in part.parametrizations}
        part.__class__ = parametrize.type_before_parametrizations(part)
        del part.parametrizations
        for name, weight in weights.items():
            part.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return model


def _result(ray, handle):
    try:
        return ray.get(handle)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        reason = f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
    raise UserError(f"a worker failed ({reason}); finished images are kept, the same command continues there") from None


def _started(workers: Workers):
    """Ray, running: as the caller's own program has started it, else started or joined here.

    Raises UserError if it is not installed, or cannot be started or joined.
    """
    os.environ |= QUIET | os.environ
    if not workers.address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # or it would listen to the network
    logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)  # its words would stand in an executed notebook
    try:
        import ray
    except ImportError:
        raise UserError("workers need Ray; pip install --requirement requirements-cluster.lock") from None
    if ray.is_initialized():
        return ray
    own = {k: value for k, value in os.environ.items() if k in AS_HERE or k.startswith("MALLOC_")} | ONE_THREAD
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    options = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": {"env_vars": own}}
    if workers.address:
        _reach(workers.address)
        options |= {"address": workers.address}
    else:  # "local": a cluster that runs here already is another one
        count = workers.count or torch.cuda.device_count() or os.cpu_count()
        options |= {"address": "local", "num_cpus": count, "include_dashboard": False}
    try:
        ray.init(**options)
    except Exception as error:  # noqa: BLE001 - where a node does not start in time, Ray raises no other kind
        given, remedy = "Ray cannot be started here", "try again with less load on this machine"
        if workers.address:
            given = f"the Ray cluster at {workers.address} cannot be used"
            remedy = f"start it by `ray start --head` with this Python and Ray {ray.__version__}, and give its token"
        raise UserError(f"{given} ({' '.join(str(error).split())}); {remedy}") from None
    return ray


def _reach(address: str) -> None:
    """See that somebody listens at the address: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        given = f"the Ray cluster at {address} cannot be reached ({error}); start one there"
        raise UserError(f"{given} by `ray start --head --port {port}`, or set MULTISHIELD_WORKERS=local") from None
