"""Tables of what was asked for and what became of it."""

from __future__ import annotations

import sqlalchemy as sa

from farm.models._base import ID, TIME, metadata, one_of, partial_index
from farm.states import FINAL, LIVE, JobState

ATTEMPT_STATES = ("running", "succeeded", "failed", "cancelled", "interrupted", "lost")
KINDS = ("interactive", "nightly", "sweep")

_LINES = ("owner", "kind", sa.text("priority DESC"), "ready_at", "id")

submissions = sa.Table(
    "submissions",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),  # higher is sooner
    sa.Column("kind", sa.Text, nullable=False, server_default="sweep"),  # class of urgency
    sa.Column("paused_at", TIME),  # since when nothing of it is placed
    sa.Column("paused_by", sa.Text),  # who wants that
    sa.Column("deadline_at", TIME),  # when what has not ended fails: the clock of the whole
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),  # the sweep as it was asked
    sa.Column("token", sa.Text, unique=True),  # client's token: submitting twice with one token submits once
    sa.Column("created_at", TIME, nullable=False),
    sa.CheckConstraint(one_of("kind", KINDS), name="kind"),
    sa.Index("ix_submissions_created_at", "created_at"),
)

points = sa.Table(
    "points",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("submission_id", ID, sa.ForeignKey("submissions.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("axes", sa.JSON, nullable=False),  # {"model": ..., "cores": 8, ...}
    sa.UniqueConstraint("submission_id", "number"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("submission_id", ID, sa.ForeignKey("submissions.id"), nullable=False),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),  # the submission's
    sa.Column("kind", sa.Text, nullable=False, server_default="sweep"),  # the submission's, or a follower's if sooner
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),  # for people: "compile 14 cores fp16"
    sa.Column("model", sa.Text, nullable=False, server_default=""),  # source@revision: what predictions go by
    sa.Column("spec", sa.JSON, nullable=False),  # qeff_engine.spec, JSON form
    sa.Column("plan_key", sa.Text, nullable=False),  # digest of spec and plan keys of inputs: known at submit
    sa.Column("action_key", sa.Text),  # digest by content: known once the inputs are done
    sa.Column("key_parts", sa.JSON),  # what the action key was made of
    sa.Column("leader_id", ID, sa.ForeignKey("jobs.id")),  # live job with the same action key
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),  # why it is in this state, for people
    sa.Column(
        "priority", sa.Integer, nullable=False, server_default="0"
    ),  # the submission's, or a follower's if higher
    sa.Column("remaining", sa.Integer, nullable=False, server_default="0"),  # inputs not done
    sa.Column("chain", sa.Integer, nullable=False, server_default="0"),  # longest chain of jobs behind it
    sa.Column("num_cores", sa.Integer, nullable=False, server_default="0"),  # per device; 0: needs a host slot
    sa.Column("num_devices", sa.Integer, nullable=False, server_default="0"),
    sa.Column("exclusive", sa.Boolean, nullable=False, server_default=sa.false()),  # nobody else on its devices
    sa.Column("needs", sa.JSON),  # what its place must be: {"sku": ..., "labels": [...], ...}; NULL: anything
    sa.Column("ram_bytes", sa.BigInteger, nullable=False, server_default="0"),  # of its host, as predicted; 0: unknown
    sa.Column("expected_s", sa.Double),  # predicted running time: median
    sa.Column("reserved_s", sa.Double),  # predicted running time: what reservations are made with
    sa.Column("wait_limit_s", sa.Double),  # the clock of waiting for a place
    sa.Column("run_limit_s", sa.Double),  # the clock of one attempt
    sa.Column("deadline_at", TIME),  # the clock of the whole job
    sa.Column("held", sa.Integer, nullable=False, server_default="0"),  # 1: not placed, see farm.lifecycle.holds
    sa.Column("skip_cache", sa.Boolean, nullable=False, server_default=sa.false()),  # do it anew, and remember that
    sa.Column("unsubscribed_at", TIME),  # when its user cancelled it, though it worked on for its followers
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),  # the fence: only grows
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # what limits are checked against
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("not_before", TIME, nullable=False, server_default="0"),
    sa.Column("node_id", ID, sa.ForeignKey("nodes.id")),  # where it is placed while queued or running
    sa.Column("placed_on", sa.JSON),  # ids of the devices that it was sent to, that of its node first
    sa.Column("forecast_at", TIME),  # when a ready job is expected to start
    sa.Column("artifact", sa.Text, sa.ForeignKey("artifacts.digest")),
    sa.Column("done_by", ID),  # job whose work the artifact is: its own id, or whose result was reused
    sa.Column("failure_class", sa.Text),
    sa.Column("failure_message", sa.Text),
    sa.Column("failure_line", sa.Text),  # the one line of the log that matters
    sa.Column("failure_advice", sa.Text),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("ready_at", TIME),
    sa.Column("queued_at", TIME),
    sa.Column("finished_at", TIME),
    sa.CheckConstraint(one_of("state", list(JobState)), name="state"),
    sa.CheckConstraint(f"({one_of('state', list(FINAL))}) = (finished_at IS NOT NULL)", name="finished"),
    sa.CheckConstraint(f"({one_of('state', ['succeeded', 'cached'])}) = (artifact IS NOT NULL)", name="artifact"),
    sa.CheckConstraint("state NOT IN ('queued', 'running') OR node_id IS NOT NULL", name="placed"),
    sa.CheckConstraint("leader_id IS NULL OR state = 'waiting'", name="following"),
    sa.CheckConstraint("remaining >= 0", name="remaining"),
    sa.CheckConstraint(one_of("kind", KINDS), name="kind"),
    sa.CheckConstraint("held IN (0, 1)", name="held"),
    sa.Index("ix_jobs_submission_id", "submission_id"),
    partial_index("uq_jobs_live_action_key", "action_key", unique=True, where=one_of("state", list(LIVE))),
    # One for each kind of place. Each owner, kind and priority is a line of its own, oldest first: whoever comes first
    # in a line comes before all behind him, so the heads of the lines are all that placement has to look at.
    partial_index("ix_jobs_ready_for_cores", *_LINES, where="state = 'ready' AND held = 0 AND num_cores > 0"),
    partial_index("ix_jobs_ready_for_slots", *_LINES, where="state = 'ready' AND held = 0 AND num_cores = 0"),
    partial_index("ix_jobs_admissible", "id", where="state = 'waiting' AND remaining = 0 AND leader_id IS NULL"),
    partial_index("ix_jobs_queued", "queued_at", where="state = 'queued'"),
    partial_index("ix_jobs_leader_id", "leader_id", where="leader_id IS NOT NULL"),
    partial_index("ix_jobs_deadline_at", "deadline_at", where="finished_at IS NULL AND deadline_at IS NOT NULL"),
    partial_index("ix_jobs_wait_limit_s", "id", where="state = 'ready' AND wait_limit_s IS NOT NULL"),
    partial_index("ix_jobs_unfinished_plan_key", "plan_key", where="finished_at IS NULL"),
)

point_jobs = sa.Table(
    "point_jobs",
    metadata,
    sa.Column("point_id", ID, sa.ForeignKey("points.id"), primary_key=True),
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Index("ix_point_jobs_job_id", "job_id"),
)

edges = sa.Table(
    "edges",
    metadata,
    sa.Column("child_id", ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("input", sa.Text, primary_key=True),  # name of the child's input: snapshot, onnx, program ...
    sa.Column("parent_id", ID, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Index("ix_edges_parent_id", "parent_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("node_id", ID, sa.ForeignKey("nodes.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("lease_until", TIME, nullable=False),
    sa.Column("started_at", TIME, nullable=False),
    sa.Column("finished_at", TIME),
    sa.Column("failure_class", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("progress", sa.Text),  # last sentence of the stage
    sa.Column("fraction", sa.Double),
    sa.Column("run_until", TIME),  # when its running limit is over
    sa.Column("hand_back", sa.Text),  # why a user lets its node end it and give the job back; NULL: nobody does
    sa.Column("placed_on", sa.JSON),  # what it held: [{"device_id": ..., "qid": ..., "cores": [...]}]
    sa.Column("ram_bytes", sa.BigInteger),  # what was reserved of the host
    sa.Column("failure_line", sa.Text),
    sa.Column("failure_advice", sa.Text),
    sa.Column("exit_code", sa.Integer),
    sa.Column("cpu_s", sa.Double),
    sa.Column("peak_rss_bytes", sa.BigInteger),
    sa.Column("figures", sa.JSON),
    sa.Column("log_path", sa.Text),  # relative to the log directory
    sa.Column("learnt", sa.Integer, nullable=False, server_default="0"),  # 1: history and its owner's use have it
    sa.Column("replaced_at", TIME),  # since when another attempt's result counts in place of this success
    sa.CheckConstraint(one_of("state", ATTEMPT_STATES), name="state"),
    sa.CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
    partial_index("uq_attempts_running", "job_id", unique=True, where="state = 'running'"),
    sa.CheckConstraint("learnt IN (0, 1)", name="learnt"),
    partial_index("ix_attempts_unlearnt", "finished_at", where="learnt = 0 AND finished_at IS NOT NULL"),
    partial_index("uq_attempts_succeeded", "job_id", unique=True, where="state = 'succeeded' AND replaced_at IS NULL"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("at", TIME, nullable=False),
    sa.Column("transition", sa.Text, nullable=False),
    sa.Column("from_state", sa.Text),
    sa.Column("to_state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("ix_events_job_id", "job_id", "id"),
)

actions = sa.Table(
    "actions",
    metadata,
    sa.Column("action_key", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("parts", sa.JSON, nullable=False),  # what the key was made of, to explain a miss
    sa.Column("artifact", sa.Text, sa.ForeignKey("artifacts.digest")),
    sa.Column("failure_class", sa.Text),  # deterministic failures only
    sa.Column("failure_message", sa.Text),
    sa.Column("failure_line", sa.Text),
    sa.Column("failure_advice", sa.Text),
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), nullable=False),  # who did it
    sa.Column("figures", sa.JSON, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("expires_at", TIME),  # of a failure that is not believed for ever
    sa.CheckConstraint("(artifact IS NULL) = (failure_class IS NOT NULL)", name="outcome"),
    sa.Index("ix_actions_artifact", "artifact"),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_files", sa.Integer, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("used_at", TIME),  # last read as an input or hit
    sa.Column("pinned", sa.Text),  # why it is kept whatever happens; NULL: it may be collected
    sa.Column("condemned_at", TIME),  # chosen by the garbage collection, and deleted later unless used meanwhile
    sa.Column("deleted_at", TIME),  # since when the store has no bytes of it; jobs still say that they made it
)
