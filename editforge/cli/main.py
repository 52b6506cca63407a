"""The `editforge` command: a name for each verb, imported when it is used. No logic here."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from editforge.cli.erase import erase, run
from editforge.cli.graph import graph
from editforge.cli.guard import guard
from editforge.cli.listing import doctor, list_
from editforge.cli.output import BAD_INPUT, INTERRUPTED, Output, guarded
from editforge.cli.saved import evaluate, inspect, package, push, verify
from editforge.cli.trying import try_
from editforge.ground.errors import EditforgeError
from editforge.ground.version import __version__

app = typer.Typer(
    name="editforge",
    help="Erase a concept from a text-to-image diffusion model, prove it, and ship the result.",
    epilog="Start with: editforge erase violin",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (erase, run, graph, evaluate, package, push, verify, inspect, doctor):
    app.command()(verb)
app.command("list")(list_)
app.command("try")(try_)
app.add_typer(guard)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"editforge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["EDITFORGE_DEBUG"] = "1"


def main() -> None:
    """Entry point: run the command, exit with its code."""
    # Read here, not from the verb: a command line that does not parse has no verb to ask.
    options = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    as_json = "--json" in options

    def call() -> int:
        try:
            code = int(app(standalone_mode=False) or 0)
        except typer.Exit as leave:
            code = int(leave.exit_code)
        except typer.Abort as stop:
            # Ctrl-C, or a question to a stream that ended: a script, which has to say -y.
            if sys.stdin.isatty() or isinstance(stop.__cause__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise EditforgeError("nobody answered, nothing was done", next="pass -y") from None
        except Exception as error:
            # typer's own usage errors know how to show themselves; the rest is handled above.
            show = getattr(error, "show", None)
            if show is None:
                raise
            show()
            what = error.format_message()  # type: ignore[attr-defined]
            context = getattr(error, "ctx", None)
            verb = f" {context.info_name}" if context is not None and context.parent else ""
            step = f"editforge{verb} --help"
            return Output(as_json=as_json).failed(BAD_INPUT, error, what, next=step)
        if code == INTERRUPTED:  # typer has caught Ctrl-C and said nothing
            raise KeyboardInterrupt
        return code

    sys.exit(guarded(call, as_json=as_json))


if __name__ == "__main__":
    main()
