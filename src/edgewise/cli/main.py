"""The command line: `edgewise VERB …`. Knows each verb's name and one line, imports a verb only when it is called.

Exit codes: 0 done, 1 refused (an `EdgewiseError`, printed with its code), 2 misuse, 130 interrupted.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from edgewise import __version__
from edgewise.core.errors import EdgewiseError, nearest
from edgewise.core.process import INTERRUPTED, leave

VERBS: dict[str, str] = {
    "demo": "Run the whole loop on this machine: train, plan, serve, survive, stay good.",
    "ca": "Make a fleet's certificate authority and issue node certificates.",
    "token": "Make, list and revoke the tokens of HTTP clients.",
    "coordinator": "Start the process that decides, on a cloud or edge node.",
    "agent": "Start the process that every node runs.",
    "nodes": "List the nodes of a running fleet and what they can do.",
    "train": "Train a model on the devices of a running fleet.",
    "runs": "List the training runs of a fleet; cancel one, or resume it.",
    "versions": "List the model versions of a fleet, and what served when.",
    "export": "Write a version of a fleet's model as an ONNX file.",
    "retrain": "Whenever a model's answers become worse: train it anew, evaluate and roll out.",
    "simulate": "Run a training job in virtual time, without processes or network.",
    "data": "Audit how a data set is split over clients.",
    "profile": "Measure what a model costs on this machine, segment by segment.",
    "plan": "Say where a model should run, and whether collaborating is worth it.",
    "serve": "Serve an ONNX model over the Open Inference Protocol.",
    "infer": "Send inputs to a served model and print the answers.",
    "report": "Write the page and the JSON of a finished run.",
    "rollback": "Restore the version that served before.",
    "logs": "Print what a node of a running fleet logged last.",
    "state": "Print what a node keeps on its disk, and let go of what nobody needs.",
    "status": "Say what the nodes of this machine are doing, and what they wait for.",
    "backup": "Copy a coordinator's state into one file, also while it runs.",
    "restore": "Make a state folder of a backup.",
    "repair": "Check a node's state folder, and fetch again what is damaged.",
    "chaos": "Try a fleet in virtual time against kills, lost power, bad links and liars.",
    "doctor": "Check that this machine has what Edgewise needs.",
}
"""Verb -> one line. A verb whose file is not part of this installation is not listed."""

RENAMED = {"keep": "retrain"}
"""Verbs of earlier releases -> what they are called now."""

# Typer carries its own copy of click from 0.2x on; the class of every misuse is found from its public child.
_MISUSE: type[Exception] = typer.BadParameter.__mro__[2]


class Verbs(TyperGroup):
    """The commands of `VERBS`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names the verbs that have a file, in the order of the table."""
        return available_verbs()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports the verb's module; None if there is no such verb."""
        return load_verb(cmd_name) if cmd_name in available_verbs() else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the verb or says which one was perhaps meant."""
        if args[0] in RENAMED:
            raise _MISUSE(f"`edgewise {args[0]}` is now called `edgewise {RENAMED[args[0]]}`, with the same options.")
        if args[0] not in available_verbs() and not args[0].startswith("-"):
            ctx.fail(f"there is no verb {args[0]!r}.{nearest(args[0], available_verbs())}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Prints the table; importing the verbs for their help would cost seconds."""
        rows = [(name, VERBS[name]) for name in available_verbs()]
        if rows:
            with formatter.section("Verbs"):
                formatter.write_dl(rows)


def available_verbs() -> list[str]:
    """Names the verbs this installation has, in the order of the table."""
    return [verb for verb in VERBS if importlib.util.find_spec(f"edgewise.cli.{verb}") is not None]


def load_verb(verb: str) -> Any:
    """Imports a verb.

    Args:
        verb: A name of `VERBS`.

    Returns:
        Its click command, ready to run.
    """
    module = importlib.import_module(f"edgewise.cli.{verb}")
    app: typer.Typer | None = getattr(module, "app", None)
    if app is None:
        app = make_app()
        app.command(name=verb, help=help_text(module.command))(module.command)
    command = typer.main.get_command(app)
    command.name = verb
    check_numbers(command)
    return command


MOST = 2**53
"""Largest number an option takes: what a JSON reader and every node can hold."""


def check_numbers(command: Any) -> None:
    """Has a verb, and the verbs below it, refuse numbers that nothing can be done with: nan, infinite, beyond `MOST`.

    Args:
        command: As Typer made it; its own bounds are looked at before.
    """
    for below in getattr(command, "commands", {}).values():
        check_numbers(below)
    if (called := command.callback) is None:
        return

    @functools.wraps(called)
    def checked(*args: Any, **given: Any) -> Any:
        for name, value in given.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and not -MOST <= value <= MOST:
                option = next((o for p in command.params if p.name == name for o in p.opts[:1]), name)
                raise typer.BadParameter(f"{option} is {value}; it takes numbers from -{MOST:,} to {MOST:,}.")
        return called(*args, **given)

    command.callback = checked


def make_app(help_line: str | None = None) -> typer.Typer:
    """Makes a Typer in the manner of all verbs: plain help, no completion, help where nothing was asked.

    Args:
        help_line: What the verb does, for a verb that has verbs of its own.
    """
    return typer.Typer(
        help=help_line, add_completion=False, rich_markup_mode=None, no_args_is_help=help_line is not None
    )


def help_text(function: Any) -> str:
    """Turns a verb's docstring into its help; paragraphs that start with `Example:` keep their lines.

    Args:
        function: The verb's function.
    """
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join("\b\n" + text if text.startswith("Example:") else text for text in paragraphs)


def make_cli() -> Verbs:
    """Makes the command group, also read by the generator of the CLI reference."""
    app = typer.Typer(cls=Verbs, add_completion=False, rich_markup_mode=None, invoke_without_command=True)

    @app.callback(help="Train and run models together across device, edge and cloud.")
    def edgewise(
        ctx: typer.Context,
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
        help_settings: bool = typer.Option(False, "--help-settings", help="Print the environment variables and exit."),
    ) -> None:
        if version:
            typer.echo(f"edgewise {__version__}")
        elif help_settings:
            from edgewise.core.environment import settings_table

            typer.echo(settings_table())
        elif ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())

    group = typer.main.get_command(app)
    assert isinstance(group, Verbs)
    return group


def run(args: Sequence[str]) -> int:
    """Runs one command line.

    Args:
        args: Words after `edgewise`.

    Returns:
        The exit code.
    """
    from edgewise.cli.output import print_error

    as_json = "--json" in args
    try:
        code = make_cli().main(args=list(args), prog_name="edgewise", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except _MISUSE as error:
        return print_error("misuse", _misuse_text(error), {}, as_json=as_json, exit_code=2)
    except EdgewiseError as error:
        return print_error(error.code, error.message, error.fields, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return print_error(
            "interrupted", "interrupted; nothing was left half-written.", {}, as_json=as_json, exit_code=INTERRUPTED
        )
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone; there is nobody to tell
        return 1
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "sklearn"}:
            raise
        text = (
            f"{error.name} is not installed, and only training needs it. Install it with: pip install 'edgewise[train]'"
        )
        return print_error("input.missing_extra", text, {}, as_json=as_json)
    except OSError as error:
        return print_error("input.file", _os_text(error), {}, as_json=as_json)


def _misuse_text(error: Any) -> str:
    text: str = error.format_message()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # a verb of verbs, called bare: its help says all
        return f"a verb is missing.\n{text}"
    text += "" if text.endswith((".", "?")) else "."
    return f"{text} Try '{context.command_path} --help'." if context is not None else text


def _os_text(error: OSError) -> str:
    where = f" {error.filename!r}" if error.filename else ""
    return f"cannot use{where}: {error.strerror or error}. Check the path, its owner and the free space."


def main() -> None:
    """Runs the words of this process, and ends it with their exit code, never by a signal."""
    leave(run(sys.argv[1:]), at_once=INTERRUPTED)
