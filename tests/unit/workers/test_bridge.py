"""What of a node's environment a stage may see."""

from __future__ import annotations

from pathlib import Path

from workers.bridge import environment

NODE = {
    "PATH": "/bin",
    "HOME": "/home/ada",
    "LC_ALL": "C.UTF-8",
    "HF_HUB_OFFLINE": "1",
    "HF_TOKEN": "hf_secret",
    "QAIC_VISIBLE_DEVICES": "3",
    "FARM_DATABASE_URL": "postgresql://farm:secret@db/farm",
    "FARM_BROKER_URL": "redis://:secret@broker",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "PATHOLOGY": "1",
    "TMPDIR": "/elsewhere",
}


def test_a_stage_sees_what_is_allowed_and_its_own_temporary_directory() -> None:
    seen = environment(NODE, stage="export", scratch=Path("/scratch/1.1"), sdk_root=Path("/opt/sdk"))
    assert seen == {
        "PATH": "/bin",
        "HOME": "/home/ada",
        "LC_ALL": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "QAIC_VISIBLE_DEVICES": "3",
        "TMPDIR": "/scratch/1.1/tmp",
        "QAIC_SDK_ROOT": "/opt/sdk",
    }


def test_only_the_stage_that_downloads_sees_the_hubs_token() -> None:
    for stage, expected in (("resolve", "hf_secret"), ("quantize", None), ("run", None)):
        seen = environment(NODE, stage=stage, scratch=Path("/s"), sdk_root=None)
        assert seen.get("HF_TOKEN") == expected


def test_a_stage_with_devices_sees_these_and_no_others() -> None:
    seen = environment(NODE, stage="run", scratch=Path("/s"), sdk_root=None, qids=[4, 1])
    assert seen["QAIC_VISIBLE_DEVICES"] == "4,1"
