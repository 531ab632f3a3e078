"""From the farm's words to a stage process's: what a claim becomes, and what of the environment a stage may see."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from farm.errors import StorageFault
from farm.records import Claim
from farm.store import stores
from qeff_engine.actions import ABSENT
from qeff_engine.spec import Stage
from qeff_engine.stage import DeviceGrant
from workers.groups import AttemptRecord, Group, new_mark
from workers.stage_process import Order
from workers.workplace import Workplace

ENTRY = "qeff_engine.pipeline:run_stage"  # what runs a stage, but in tests of the farm alone

# A stage sees these variables of its node and no others. Names that end in _ stand for all that begin so.
_ALLOWED = (
    "HOME",
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_",
    "TZ",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HF_",
    "TRANSFORMERS_",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "QAIC_",
    "QEFF_",
)
_NICENESS = 5  # of a stage without a device: leases are renewed in time. What runs on a device is being measured
_SPARE_CPU_S = 60
_VISIBLE_DEVICES = "QAIC_VISIBLE_DEVICES"
_SECRET = ("HF_TOKEN", "HF_TOKEN_PATH")  # only the stage that downloads needs them


def order(claim: Claim, *, workplace: Workplace) -> Order:
    """What the stage process of a claim is told; makes the tree that it will fill.

    Raises:
        StorageFault: the store is full or read-only.
    """
    name = f"{claim.job_id}.{claim.attempt}"
    scratch = workplace.scratch / f"{name}.{time.time_ns():x}"
    record = AttemptRecord(
        job_id=claim.job_id,
        attempt=claim.attempt,
        group=Group(mark=new_mark()),
        tree=workplace.store.new_tree(name=name),
        scratch=scratch,
    )
    try:
        record.write(workplace.records)
    except OSError as error:
        workplace.store.discard(record.tree)
        raise StorageFault(
            f"Cannot write to {workplace.records}: {error}. Check the disk of the farm's home."
        ) from error
    return Order(
        entry=workplace.entry,
        stage=str(claim.stage),
        spec=dict(claim.spec),
        store=stores.place(workplace.settings, environ=workplace.environ),
        inputs=dict(claim.inputs),
        record=record,
        records=workplace.records,
        sdk_root=workplace.sdk_root,
        devices=tuple(DeviceGrant(qid=grant.qid, num_cores=len(grant.cores)) for grant in claim.grants),
        environ=environment(
            workplace.environ,
            stage=claim.stage,
            scratch=scratch,
            sdk_root=workplace.sdk_root,
            qids=[grant.qid for grant in claim.grants],
        ),
        num_threads=workplace.num_threads,
        niceness=0 if claim.grants else _NICENESS,
        cpu_limit_s=None if claim.run_limit_s is None else _cpu_limit_s(claim.run_limit_s),
    )


def _cpu_limit_s(run_limit_s: float) -> int:
    """CPU seconds that no process can use within a running limit, however many processors the host has."""
    return math.ceil(run_limit_s * (os.cpu_count() or 1)) + _SPARE_CPU_S


def is_as_keyed(claim: Claim, toolchain: Mapping[str, str]) -> bool:
    """Whether the versions that a stage runs with are those in its action key; where none are known they are."""
    return not toolchain or all(toolchain.get(name, ABSENT) == version for name, version in claim.toolchain.items())


def allowed(environ: Mapping[str, str]) -> dict[str, str]:
    """What the servers that stages are forked from may see: what every stage may, for the kernel shows it in each."""
    return {name: value for name, value in environ.items() if _is_allowed(name, stage=None)}


def environment(
    environ: Mapping[str, str], *, stage: str, scratch: Path, sdk_root: Path | None, qids: Sequence[int] = ()
) -> dict[str, str]:
    """The environment of a stage: what is allowed of the node's, its own directory for temporary files, its devices."""
    seen = {name: value for name, value in environ.items() if _is_allowed(name, stage=stage)}
    seen["TMPDIR"] = str(scratch / "tmp")
    if not any(name == "LANG" or name.startswith("LC_") for name in seen):
        seen["LANG"] = "C.UTF-8"  # so that tools print what a log can hold
    if sdk_root is not None:
        seen["QAIC_SDK_ROOT"] = str(sdk_root)
    if qids:
        seen[_VISIBLE_DEVICES] = ",".join(map(str, qids))
    return seen


def _is_allowed(name: str, *, stage: str | None) -> bool:
    if name in _SECRET and stage != Stage.RESOLVE:
        return False
    return any(name.startswith(entry) if entry.endswith("_") else name == entry for entry in _ALLOWED)
