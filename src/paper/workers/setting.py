"""How many workers compute: a setting of the machine. It changes no result, so it is no parameter of the experiment."""

import os
import re
from dataclasses import dataclass

from multishield.errors import UserError, closest
from paper import paths

# Environment variable or line of `.multishield/config`: what it means.
WORKERS, GPUS, PATIENCE = "workers", "gpus", "patience"


@dataclass(frozen=True)
class Workers:
    """Who computes.

    Attributes:
        address: of a Ray cluster; "" for this machine alone.
        count: processes on this machine; None: one per GPU, or where there is none one per core.
        gpus: of each worker; None: one where the cluster has any.
        patience: seconds without a sign of life after which a worker is taken for hanging.
    """

    address: str = ""
    count: int | None = 1
    gpus: float | None = None
    patience: float = 600.0

    @property
    def here(self) -> bool:
        """Whether this process does everything itself."""
        return not self.address and self.count == 1


def wanted() -> Workers:
    """What MULTISHIELD_WORKERS, MULTISHIELD_GPUS and MULTISHIELD_PATIENCE say, or else `.multishield/config`.

    Its lines are `workers: 1` (this process, the default), `workers: 4` or `workers: local` (processes of this
    machine), `workers: HOST:PORT` (a Ray cluster); `gpus: 1`; `patience: 600`.

    Raises:
        UserError: a value or a line is none of these.
    """
    said = _config() | {
        name: os.environ[f"MULTISHIELD_{name.upper()}"]
        for name in (WORKERS, GPUS, PATIENCE)
        if os.environ.get(f"MULTISHIELD_{name.upper()}")
    }
    who = said.get(WORKERS, "1")
    gpus = _number(GPUS, said[GPUS], 0) if GPUS in said else None
    patience = _number(PATIENCE, said[PATIENCE], 1) if PATIENCE in said else Workers.patience
    if who.isdecimal() and int(who) >= 1:
        return Workers(count=int(who), gpus=gpus, patience=patience)
    if who == "local":
        return Workers(count=None, gpus=gpus, patience=patience)
    if re.fullmatch(r"[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+", who):
        return Workers(who, None, gpus, patience)
    raise UserError(
        f"workers is {who!r}; accepted are a number of processes from 1, 'local' for one per GPU or core, or the "
        "address of a Ray cluster as HOST:PORT"
    )


def _config() -> dict[str, str]:
    """The lines of `.multishield/config`; none outside a project."""
    try:
        file = paths.state("config")
    except UserError:
        return {}
    if not file.is_file():
        return {}
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = {}
    for line in filter(None, lines):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or name not in (WORKERS, GPUS, PATIENCE):
            known = (WORKERS, GPUS, PATIENCE)
            listing = f"a line is NAME: VALUE, with one of {', '.join(known)}"
            raise UserError(f"{file} has the line {line!r}; {closest(name, known, listing)}")
        found[name] = value
    return found


def _number(name: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < float("inf"):
        raise UserError(f"{name} is {text!r}; a number from {least:g} is accepted")
    return value
