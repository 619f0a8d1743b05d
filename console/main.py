"""`ratchet`: every command, and the one border where errors become messages and exit codes.

Exit codes: 0 done, 1 the run or the check failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from console import (
    bisect,
    blame,
    doctor,
    evaluate,
    export,
    init,
    model,
    replay,
    rewind,
    run,
    snapshot,
    status,
    store,
    submit,
    sweep,
    trace,
    version,
)
from contracts.errors import (
    FormatError,
    RatchetError,
    StoreFullError,
    StoreIdentityError,
    UserError,
    is_disk_full,
)

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
FREE_SPACE = "free some space on that disk; the run is whole and `ratchet resume` goes on"


class Border(TyperGroup):
    """Turns what a command raises into a message on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _say("error: ", error.asked)
            _say("found: ", error.found)
            _say("to do: ", error.todo)
            raise typer.Exit(BAD_INPUT) from None
        except StoreFullError as error:
            _say("error: ", str(error))
            _say("to do: ", FREE_SPACE)
            raise typer.Exit(BAD_INPUT) from None
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            if error.filename is None:
                raise
            _say("error: ", f"{error.filename} cannot be used: {error.strerror}")
            _say("to do: ", "see that it is what it should be, and yours")
            raise typer.Exit(BAD_INPUT) from None
        except OSError as error:
            if not is_disk_full(error):
                raise
            _say("error: ", f"no space is left for {error.filename or 'the files of this run'}")
            _say("to do: ", FREE_SPACE)
            raise typer.Exit(BAD_INPUT) from None
        except (StoreIdentityError, FormatError) as error:
            _say("error: ", str(error))
            _say("to do: ", "name the folder of a run whose store is whole, or bring back the file from a copy")
            raise typer.Exit(BAD_INPUT) from None
        except RatchetError as error:
            _say(f"{type(error).__name__}: ", " ".join(str(error).split("\n")))
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Border,
    help="Event-sourced reinforcement fine-tuning on Ray. RUN is `latest`, a name under runs/, or a path.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("init")(init.init)
app.command("run")(run.run)
app.command("resume")(run.resume)
app.command("submit")(submit.submit)
app.command("status")(status.status)
app.command("stop")(run.stop)
app.command("replay")(replay.replay)
app.command("rewind")(rewind.rewind)
app.command("bisect")(bisect.bisect)
app.command("blame")(blame.blame)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("sweep")(sweep.sweep)
app.command("trace")(trace.trace)
app.command("doctor")(doctor.doctor)
app.add_typer(model.app, name="model")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(store.app, name="store")
app.add_typer(version.app, name="version")


def main() -> None:
    """Entry point of the `ratchet` script."""
    app()


def _say(head: str, text: str) -> None:
    if text:
        typer.echo(head + text.replace("\n", "\n" + " " * len(head)), err=True)


if __name__ == "__main__":
    main()
