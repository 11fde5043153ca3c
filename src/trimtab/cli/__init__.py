"""The command line: parse, call, print. ``main`` is the console script."""

from __future__ import annotations

import os
import sys
from typing import cast


def main(arguments: list[str] | None = None) -> int:
    """Run ``trimtab ARGUMENTS``; returns the exit code.

    0 done, 1 nothing reads what we print, 2 bad input (one line on stderr), 130 interrupted.
    """
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # As after `| head`: let the interpreter's own flush at exit go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if code == 130:
        print("interrupted; nothing was left half-written", file=sys.stderr)
    return code


def _run(arguments: list[str] | None) -> int:
    import typer

    from trimtab.cli.app import app
    from trimtab.errors import TrimtabError

    # Usage errors (click's, which newer typers carry inside) have no public name of their own.
    usage_error = cast(type[Exception], typer.BadParameter.__mro__[2])
    try:
        code = app(args=arguments, prog_name="trimtab", standalone_mode=False)
    except TrimtabError as error:
        return _fail(str(error))
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(_message(error))
            return 0
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "trimtab"
        return _fail(f"{_message(error).rstrip('.')}; see `{command} --help`")
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return code if isinstance(code, int) else 0


def _message(error: Exception) -> str:
    return str(error.format_message())  # type: ignore[attr-defined]


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
