"""A node that ends what it claims at once, without a stage process: ``python -m benchmarks.bare_node host``.

What remains is SQL, outbox, broker, claim and finish.
"""

from __future__ import annotations

from farm.records import ArtifactRecord, Claim, Success, Usage
from workers.workplace import Workplace

NUM_SLOTS = 32


def carry_out(workplace: Workplace, claim: Claim, since: float) -> None:
    """Say that a claim succeeded, with an artifact that has no bytes."""
    artifact = ArtifactRecord(digest=f"{claim.job_id:064x}", stage=claim.stage, num_bytes=0, num_files=0)
    success = Success(job_id=claim.job_id, attempt=claim.attempt, artifact=artifact, figures={}, usage=Usage())
    workplace.ledger.succeed(success)
