"""Run one long command and show what is being done and for how long; its output goes to a log file.

    python3 .ci/step.py "what is being done" LOG -- COMMAND [ARG ...]

On a terminal one line is redrawn; otherwise a line is printed at the start, each half minute and at the end. When
the command fails, the end of its log is shown. Needs only the standard library: it runs before anything is
installed.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

INTERRUPTED = 130  # as a shell says it
_REDRAW_S = 0.5
_REPEAT_S = 30.0
_TAIL_LINES = 25


def last_line(log: pathlib.Path) -> str:
    """The last line of the log that is not empty, shortened to fit a terminal."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:60] if lines else ""


def watch(title: str, log: pathlib.Path, finished: threading.Event) -> None:
    """Show the title, the time so far and the log's last line until the command has finished."""
    start_s, shown_s = time.monotonic(), 0.0
    terminal = sys.stderr.isatty()
    while not finished.wait(_REDRAW_S):
        elapsed_s = time.monotonic() - start_s
        text = f"{title} ... {elapsed_s:.0f} s  {last_line(log)}"
        if terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif elapsed_s - shown_s >= _REPEAT_S:
            shown_s = elapsed_s
            print(text, file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    title, log_name, separator, *command = arguments
    if separator != "--" or not command:
        sys.exit(__doc__)
    log = pathlib.Path(log_name)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{title} ...", file=sys.stderr, flush=True)
    start_s = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        finished = threading.Event()
        watcher = threading.Thread(target=watch, args=(title, log, finished))
        watcher.start()
        try:
            code = process.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            code = INTERRUPTED
        finally:
            finished.set()
            watcher.join()
    elapsed_s = time.monotonic() - start_s
    if code == 0:
        print(f"{title}: done in {elapsed_s:.0f} s", file=sys.stderr)
    elif code == INTERRUPTED:
        print(f"{title}: interrupted after {elapsed_s:.0f} s", file=sys.stderr)
    else:
        tail = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        print(
            "\n".join([*tail, f"{title}: failed after {elapsed_s:.0f} s; the whole output is in {log}"]),
            file=sys.stderr,
        )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
