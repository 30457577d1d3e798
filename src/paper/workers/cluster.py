"""The crew that Ray carries: processes of this machine, or of a cluster. Installed by the extra `cluster`.

Ray starts the processes, finds GPUs, sends models once to each machine, and notices what has died. A piece of work is a
streaming task: what is finished comes back while the rest is computed, so that a killed worker loses little.
"""

import contextlib
import copy
import importlib.metadata
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator

import torch
from torch import nn

from multishield.errors import UserError
from paper.workers.setting import Workers
from paper.workers.spread import Lost, Work

# Seconds between two words of a worker.
BEAT = 1.0
# What a worker's arithmetic and memory depend on is as here; but each has one thread: more would wait for each other.
AS_HERE = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ONE_THREAD |= {"OMP_DYNAMIC": "false", "MKL_DYNAMIC": "false"}


def crew(workers: Workers, work: Work, model: nn.Module) -> "RayCrew":
    """Workers that know a model and what to do with it; Ray is started, or joined, by the first call."""
    return RayCrew(_joined(workers), workers, work, model)


# The setting by which Ray was started here; empty where somebody else has, or nobody.
_STARTED: list[Workers] = []


def _joined(workers: Workers):
    """Ray, running: as it is where the caller's own program has started it.

    Raises:
        UserError: it is not installed; there is nothing at the address, or another version; no GPU where one is asked
            for.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # a kernel that is told to end is no crash
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # nobody looks; a kernel would wait for it to end
    if not workers.address:
        # As on desktops: else it takes 127.0.0.1 for the machine's own address, and listens to the network.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)  # its words would stand in an executed notebook
    try:
        import ray
    except ImportError:
        raise UserError(
            "workers are carried by Ray, which is not installed; pip install --requirement requirements-cluster.lock"
        ) from None
    if ray.is_initialized():
        if _STARTED in ([], [workers]):
            return ray
        ray.shutdown()
    own = {k: value for k, value in os.environ.items() if k in AS_HERE or k.startswith("MALLOC_")} | ONE_THREAD
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    options = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": {"env_vars": own}}
    if workers.address:
        _answers(workers.address)
        options |= {"address": workers.address}
    else:
        count = workers.count or torch.cuda.device_count() or os.cpu_count()
        # "local": a cluster that runs here already is another one.
        options |= {"address": "local", "num_cpus": count, "include_dashboard": False}
    try:
        ray.init(**options)
    except Exception as error:  # noqa: BLE001 - where a node does not start in time, Ray raises no other kind
        said = " ".join(str(error).split())
        if not workers.address:
            raise UserError(f"Ray cannot be started on this machine ({said}); try again with less load on it") from None
        raise UserError(
            f"the Ray cluster at {workers.address} cannot be used ({said}); its machines need the same Python and Ray "
            f"{importlib.metadata.version('ray')}: start it by `ray start --head` there, give its HOST:PORT, and set "
            "RAY_AUTH_MODE=token here where it asks for a token"
        ) from None
    if workers.gpus and ray.cluster_resources().get("GPU", 0) < workers.gpus:
        has = ray.cluster_resources().get("GPU", 0)
        ray.shutdown()
        raise UserError(f"gpus is {workers.gpus:g} for each worker, and there are {has:g}; set gpus: 0 for CPUs alone")
    _STARTED[:] = [workers]
    return ray


def _answers(address: str) -> None:
    """Somebody listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"the Ray cluster at {address} cannot be reached ({error}); start one by `ray start --head --port {port}` "
            "there, or set workers: local"
        ) from None


class RayCrew:
    """See `spread.Crew`. A handle is the generator of a task's results."""

    def __init__(self, ray, workers: Workers, work: Work, model: nn.Module):
        self.ray, self.sent = ray, ray.put((work, _on_cpu(model)))
        self.gpus = workers.gpus if workers.gpus is not None else float(bool(ray.cluster_resources().get("GPU", 0)))
        self.task = ray.remote(_compute).options(num_returns="streaming", num_cpus=1, num_gpus=self.gpus, max_retries=0)

    def size(self) -> int:
        found = self.ray.cluster_resources()
        room = found.get("GPU", 0) / self.gpus if self.gpus else found.get("CPU", 0)
        return max(1, int(room))

    def begin(self, inputs: object) -> object:
        return self.task.remote([self.sent], self.sent.hex(), inputs)

    def news(self, handles: list, seconds: float) -> list[tuple[object, list | BaseException | None]]:
        ready, _ = self.ray.wait(handles, num_returns=len(handles), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(handles, num_returns=1, timeout=seconds)
        return [(handle, self._said(handle)) for handle in ready]

    def _said(self, handle) -> list | BaseException | None:
        errors = self.ray.exceptions
        try:
            return self.ray.get(next(handle))
        except StopIteration:
            return None
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            return cause if isinstance(cause, UserError) else RuntimeError(f"{type(cause).__name__}: {cause}")
        except errors.OutOfMemoryError:
            return RuntimeError("out of memory")
        except (errors.NodeDiedError, errors.ObjectLostError):
            return Lost()
        except errors.RayError as error:
            return RuntimeError(str(error).strip().splitlines()[0])

    def stop(self, handle) -> None:
        self.ray.cancel(handle, force=True)


def _on_cpu(model: nn.Module) -> nn.Module:
    """The model as it is sent: a copy where it stands on a GPU."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model).cpu() if any(t.is_cuda for t in tensors) else model


# In a worker: what it was sent last, by the name of the parcel. Loaded once, not once per piece.
_HELD: dict[str, tuple[Work, nn.Module]] = {}


def _compute(sent: list, name: str, inputs: object) -> Iterator[list]:
    """A task: in a worker, compute a piece and yield what is emitted. sent: a reference, in a list so that Ray leaves
    it to us when to fetch it."""
    import ray

    yield []  # the first sign of life
    if name not in _HELD:
        _HELD.clear()
        work, model = ray.get(sent[0])
        # As `models.classifier.device` has it, which lies above this room: verdicts in full precision.
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
        _HELD[name] = work, model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    work, model = _HELD[name]
    yield from streamed(lambda emit: work(model, inputs, emit))


def streamed(call: Callable[[Callable], object]) -> Iterator[list]:
    """What a call emits, in lists, as it comes; empty ones say that a model is still computing.

    The call has a thread of its own. Where it raises, so does this, after the last list.
    """
    said, end, beats = queue.SimpleQueue(), [], [0]

    def run() -> None:
        try:
            call(lambda *event: said.put(event))
        except BaseException as error:  # noqa: BLE001 - raised again below
            end.append(error)

    def beat(*_) -> None:
        beats[0] += 1

    hook = torch.nn.modules.module.register_module_forward_hook(beat)
    thread, before = threading.Thread(target=run, daemon=True), 0
    thread.start()
    try:
        alive = True
        while alive:
            thread.join(BEAT)
            alive, events = thread.is_alive(), []
            with contextlib.suppress(queue.Empty):
                while True:
                    events.append(said.get_nowait())
            # Of words that finish nothing the last one is enough.
            kept = [e for e in events[:-1] if len(e[0])] + events[-1:]
            if kept or beats[0] != before:
                before = beats[0]
                yield kept
    finally:
        hook.remove()
    if end:
        raise end[0]
