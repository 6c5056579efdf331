"""Entry point of the command line: registers the commands, runs one, and maps errors to exit codes.

Slow imports happen only when a command runs, so that ``galscan --help`` is fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from galscan.cli.evaluate import ablate, evaluate
from galscan.cli.export import export, send
from galscan.cli.generate import generate, train_generator
from galscan.cli.info import demo, doctor, info
from galscan.cli.ingest import ingest
from galscan.cli.scan import make_map, scan, similar
from galscan.cli.target import check_target, list_targets, measure_feature, new_target
from galscan.cli.train_rare import train_rare
from galscan.cli.vet import purity, vet
from galscan.core import progress
from galscan.core.errors import GalscanError, Interrupted
from galscan.core.version import __version__

app = typer.Typer(
    name="galscan",
    help="Find rare galaxies in surveys of millions: ingest, train-rare, scan, export.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong input or usage, 130 interrupted (run the same command to resume).",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


START = """\
galscan finds rare galaxies in surveys of millions: it trains on a few labelled ones, scans, and ranks candidates.

  galscan demo              the whole chain on a simulated sky; no data is needed
  galscan ingest --help     read your own images and their table, or those of a survey
  galscan target list       the kinds of rare galaxies that have a recipe
  galscan doctor            check the installation
  galscan --help            all commands; each has --help with an example
Documents: https://github.com/galscan/galscan/tree/main/docs"""
"""What ``galscan`` without arguments prints."""


def _version(requested: bool) -> None:
    if requested:
        print(f"galscan {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
    tracebacks: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error comes from.")] = False,
) -> None:
    pass  # `run` removes --traceback from the arguments, so that it may come after the command


target = typer.Typer()
app.add_typer(
    target, name="target", help="Write, check or list recipes of targets.",
    epilog="Example: galscan target new arcs && galscan target check arcs.toml --store gz2.zarr",
)  # fmt: skip

feature = typer.Typer()
app.add_typer(
    feature, name="feature", help="Measure the feature that a recipe injects.",
    epilog="Example: galscan feature measure --target mine.toml --store ngc.zarr --sheet feature.png",
)  # fmt: skip
GROUPS = {"": app, "target": target, "feature": feature}

COMMANDS = (
    demo, ingest, train_rare, train_generator, generate, evaluate, ablate, scan, similar, make_map, export, send, vet,
    purity, new_target, check_target, list_targets, measure_feature, info, doctor,
)  # fmt: skip
"""Each command, in the order of --help."""

CODES = {
    "usage": (2, "The command, an option or its value does not exist, or is missing."),
    "no-permission": (2, "A file cannot be read."),
    "unexpected": (1, "Any other exception, which is a bug; --traceback shows where it comes from."),
}
"""Error codes of the command line that are no class in galscan: exit code and meaning."""

RENAMED = {"dream": "generate", "judge": "evaluate"}  # old names of commands, still accepted

for _command in COMMANDS:
    _group, _, _name = _command.name.rpartition(" ")
    _epilog = f"Example: galscan {_command.name} {_command.example}".rstrip()
    GROUPS[_group].command(_name, epilog=_epilog)(_command.run)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed as one line on stderr."""
    try:
        return _run(arguments)
    except BrokenPipeError:  # the reader of the pipe has closed it, as `head` does: exit silently
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    debug = "--traceback" in arguments or os.environ.get("GALSCAN_TRACEBACK", "") not in ("", "0")

    def fail(message: str, code: str, exit_code: int | None = None) -> int:
        exit_code = CODES[code][0] if exit_code is None else exit_code
        message = " ".join(message.split())
        print(f"error: {message}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"error": message, "code": code, "exit_code": exit_code}), flush=True)
        return exit_code

    try:
        given = [a for a in arguments if a != "--traceback"]
        if not given and "_GALSCAN_COMPLETE" not in os.environ:  # a shell that completes a command passes no argument
            print(START)
            return 0
        if given and (new := RENAMED.get(given[0])) is not None:
            print(f"note: galscan {given[0]} is now called galscan {new}", file=sys.stderr)
            given[0] = new
        code = app(given, prog_name="galscan", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:
            raise KeyboardInterrupt
        return int(code or 0)
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted; run the same command again to resume", Interrupted.code, Interrupted.exit_code)
    except Exception as error:
        # A usage error; the module of its class differs between versions of typer.
        if usage := getattr(error, "format_message", None):
            context = getattr(error, "ctx", None)
            where = context.command_path if context else "galscan"
            return fail(f"{usage().rstrip('.')} (see: {where} --help)", "usage")
        if debug:
            traceback.print_exc()
        if isinstance(error, GalscanError):
            return fail(str(error), error.code, error.exit_code)
        if isinstance(error, PermissionError):  # from reading; errors from writing have their own messages
            file = error.filename or error
            return fail(f"no permission to read {file}; change its mode or name another path", "no-permission")
        why = f"unexpected {type(error).__name__}: {error} (for the developers: run it again with --traceback)"
        return fail(why, "unexpected")


def main() -> NoReturn:
    """Entry point of the command ``galscan``."""
    # The process used little but its own time so far: it started this much earlier.
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    progress.command_started[name] = time.perf_counter() - time.process_time()
    sys.exit(run(sys.argv[1:]))
