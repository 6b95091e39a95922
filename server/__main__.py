"""The command line: `minicpmv serve`, `minicpmv selftest`, `minicpmv --version`."""

import argparse
import sys
from collections.abc import Sequence

from server.settings import InvalidSettings, load_settings
from server.version import VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. Wrong settings are 2, as wrong flags are.

    Raises:
        SystemExit: after `--help` and `--version`, and for wrong flags (argparse has printed why).
    """
    parser = argparse.ArgumentParser(
        prog="minicpmv",
        description="MiniCPM-V 2.0 and 1.0 behind the OpenAI API.",
        epilog="Each command has its own --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minicpmv {VERSION}")
    parser.add_argument("command", choices=["serve", "selftest"], help="serve a model; compare it with a reference")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        return _serve(given.arguments) if given.command == "serve" else _selftest(given.arguments)
    except InvalidSettings as err:
        print(err, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _serve(arguments: Sequence[str]) -> int:
    settings = load_settings(arguments, command="serve")
    # Here, so that --help and a wrong setting are answered at once.
    from server.serve import run_server

    return run_server(settings)


if __name__ == "__main__":
    sys.exit(main())
