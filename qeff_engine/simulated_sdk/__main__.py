"""``python -m qeff_engine.simulated_sdk install DIR --devices ultra:1,standard:1``."""

from __future__ import annotations

import argparse
import sys

from qeff_engine.simulated_sdk import devices, install


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m qeff_engine.simulated_sdk", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "install", help="make a directory like /opt/qti-aic with simulated devices"
    )
    command.add_argument("directory", metavar="DIR")
    command.add_argument(
        "--devices", required=True, help=f"KIND:COUNT,... with KIND one of {', '.join(devices.KINDS)}; each is one SoC"
    )
    command.add_argument("--version", default=install.DEFAULT_VERSION, help="version of the SDK [%(default)s]")
    options = parser.parse_args(arguments)
    try:
        root = install.install(options.directory, devices=options.devices, version=options.version)
    except (install.BadInstall, devices.BadDevices) as error:
        parser.error(str(error))
    except OSError as error:
        print(f"The simulated SDK cannot be installed: {error}", file=sys.stderr)
        return 1
    print(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
