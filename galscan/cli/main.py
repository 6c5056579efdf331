"""Entry point of the command line: registers the commands, runs one, and maps errors to exit codes.

Each command is a function in `galscan.cli.survey` or `galscan.cli.learn` that calls the public function of the same
name. Slow imports happen only when a command runs, so that ``galscan --help`` is fast.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from galscan.cli import learn, survey
from galscan.core.errors import GalscanError, Interrupted
from galscan.core.version import __version__

app = typer.Typer(
    name="galscan",
    help="Find rare galaxies in surveys of millions: ingest, train-rare, scan, export.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong input or usage, 130 interrupted (run the same command to resume).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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

COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("demo", survey.demo, "--out demo-run"),
    ("ingest", survey.ingest, "--survey local --path images/ --catalog table.csv --labels efigi --out ngc.zarr"),
    ("train-rare", learn.train_rare, "--target dustlane --survey ngc --budget 60"),
    ("train-generator", learn.train_generator, "--out base.safetensors"),
    ("generate", learn.generate, "--target dustlane --count 48 --out images/"),
    ("evaluate", learn.evaluate, "models/dustlane --target dustlane --survey ngc"),
    ("ablate", learn.ablate, "--target dustlane --survey ngc --seeds 5 --prevalence 0.005 --out ablation/"),
    ("scan", survey.scan, "--survey sdss --target dustlane --out run/"),
    ("similar", survey.similar, "--run run/ --like 1237648720693690487,1237651191354261600 --out like/"),
    ("export", survey.export, "run/ --min-purity 0.5 --known kaviraj2012.csv --out candidates.fits"),
    ("vet", survey.vet, "run/ --size 200"),
    ("purity", survey.purity, "run/"),
    ("target new", learn.target_new, "arcs --schema gz2 --answer t08_odd_feature_a20_lens_or_arc"),
    ("target check", learn.target_check, "arcs.toml --store gz2.zarr --sheet arcs.png"),
    ("target list", learn.target_list, ""),
    ("info", survey.info, "ngc.zarr --sheet ngc.png"),
    ("doctor", survey.doctor, ""),
)
"""Each command, in the order of --help, with an example of its arguments."""

RENAMED = {"dream": "generate", "judge": "evaluate"}  # old names of commands, still accepted

for _name, _command, _example in COMMANDS:
    _group = target if _name.startswith("target ") else app
    _group.command(_name.split()[-1], epilog=f"Example: galscan {_name} {_example}".rstrip())(_command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed as one line on stderr."""
    as_json = "--json" in arguments
    debug = "--traceback" in arguments or os.environ.get("GALSCAN_TRACEBACK", "") not in ("", "0")

    def fail(message: str, exit_code: int, code: str) -> int:
        message = " ".join(message.split())
        print(f"error: {message}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"error": message, "code": code, "exit_code": exit_code}), flush=True)
        return exit_code

    interrupted = "interrupted; run the same command again to resume"
    try:
        try:
            given = [a for a in arguments if a != "--traceback"] or ["--help"]
            if (new := RENAMED.get(given[0])) is not None:
                print(f"note: galscan {given[0]} is now called galscan {new}", file=sys.stderr)
                given[0] = new
            code = app(given, prog_name="galscan", standalone_mode=False)
            sys.stdout.flush()
            return fail(interrupted, 130, Interrupted.code) if code == 130 else int(code or 0)
        except (KeyboardInterrupt, typer.Abort):
            return fail(interrupted, 130, Interrupted.code)
        except BrokenPipeError:
            raise
        except GalscanError as error:
            if debug:
                traceback.print_exc()
            return fail(str(error), error.exit_code, error.code)
        except PermissionError as error:  # from reading; errors from writing have their own messages
            if debug:
                traceback.print_exc()
            why = f"no permission to read {error.filename or error}; change its mode or name another path"
            return fail(why, 2, "no-permission")
        except Exception as error:
            # A usage error; the module of its class differs between versions of typer.
            if message := getattr(error, "format_message", None):
                context = getattr(error, "ctx", None)
                where = context.command_path if context else "galscan"
                return fail(f"{message().rstrip('.')} (see: {where} --help)", 2, "usage")
            if debug:
                traceback.print_exc()
            why = f"unexpected {type(error).__name__}: {error} (for the developers: run it again with --traceback)"
            return fail(why, 1, "unexpected")
    except BrokenPipeError:  # the reader of the pipe has closed it, as `head` does: exit silently
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def main() -> NoReturn:
    """Entry point of the command ``galscan``."""
    sys.exit(run(sys.argv[1:]))
