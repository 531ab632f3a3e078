"""The fork server with the modules of real stages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from pathlib import Path

import psutil

from tests.fork_probe import report
from workers.fork_server import modules
from workers.forks import PRELOAD, ForkServer

forks = ForkServer()
forks.warm_up()
code = forks.collect(forks.start(report, order=sys.argv[1]).result()).code
said = json.loads(Path(sys.argv[1]).read_text())
(server,) = [p for p in psutil.Process().children() if "fork_server" in " ".join(p.cmdline())]
facts = {
    "said": said,
    "code": code,
    "threads": server.num_threads(),
    "missing": [name for name in PRELOAD if name.removesuffix(".*") not in said["modules"]],
    "engine": [name for name in modules("qeff_engine") if name not in said["modules"]],
    "node_has_torch": "torch" in sys.modules,
}
forks.close()
print(json.dumps(facts))
"""


def test_the_server_has_every_module_one_thread_and_has_computed_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "said"], check=True, capture_output=True, text=True
    )
    facts = json.loads(done.stdout)
    assert facts["missing"] == []
    assert facts["engine"] == []  # so that a change on disk does not reach a stage that runs
    assert facts["threads"] == 1
    assert facts["code"] == 0
    assert not facts["node_has_torch"]
    assert "onnxruntime" not in facts["said"]["modules"]
    assert facts["said"]["threads"] == 1  # and a child begins with one
    assert facts["said"]["sum"] == 6.0  # and can compute with several
