"""``python -m qeff_engine.simulated_sdk install DIR --devices ultra:1,standard:1``, and ``fault DIR set KIND``."""

from __future__ import annotations

import argparse
import sys

from qeff_engine.simulated_sdk import devices, fault_cli, install


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m qeff_engine.simulated_sdk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("install", help="make a directory like /opt/qti-aic with simulated devices")
    command.add_argument("directory", metavar="DIR")
    command.add_argument(
        "--devices", required=True, help=f"KIND:COUNT,... with KIND one of {', '.join(devices.KINDS)}; each is one SoC"
    )
    command.add_argument("--version", default=install.DEFAULT_VERSION, help="version of the SDK [%(default)s]")
    fault_cli.add_arguments(commands.add_parser("fault", help="let tools, programs and devices of one fail"))
    options = parser.parse_args(arguments)
    if options.command == "fault":
        return fault_cli.run(options)
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
