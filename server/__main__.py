"""`python -m server COMMAND`: every command."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from server.cli import cluster, database, doctor, export, health, reference, restored, serve, stripe, token, webhook
from server.environment import SettingsError
from server.errors import DatabaseUnavailable
from server.postgres.embedded import EmbeddedPostgresError

Command = Callable[[argparse.Namespace], int | None]

_INTERRUPTED = 130
"""The exit code after Ctrl-C by convention: 128 and the number of SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Errors that an operator can fix are one line on standard error."""
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed) or 0
    except (SettingsError, EmbeddedPostgresError, DatabaseUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        print(error.strerror, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server", description="Sells OTP credits and spends them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, explanation: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=explanation, description=explanation)
        added.set_defaults(command=command)
        return added

    serve.add_arguments(add("serve", serve.serve, "run the gRPC server"))
    add("webhook", lambda _: webhook.webhook(), "run the sidecar that receives Stripe's webhooks")
    add("dev", lambda _: _sandbox("dev").dev(), "run everything on this machine, without configuration")
    add("demo", lambda _: _sandbox("demo").demo(), "run an example: one top-up and three sends, through gRPC and HTTP")
    add("postgres", lambda _: database.run_postgres(), "run the embedded PostgreSQL alone")
    add("migrate", lambda _: database.migrate_database(), "apply missing migrations to the database")
    add("distribute", lambda _: cluster.distribute_database(), "move the tables to the workers of a Citus cluster")
    stripe.add_reconcile_arguments(
        add("reconcile", stripe.reconcile, "compare Stripe's invoices with the top-ups, or process an event again")
    )
    stripe.add_resolve_arguments(
        add("resolve-top-up", stripe.resolve_top_up, "end a top-up that needs a person: add credits, or close it")
    )
    stripe.add_endpoint_arguments(
        add("stripe-endpoint", stripe.stripe_endpoint, "create or correct Stripe's webhook endpoint of the sidecar")
    )
    add("doctor", lambda _: doctor.doctor(), "check everything that a deployment needs, and list every setting")
    health.add_arguments(add("health", health.health, "ask the server of this machine how it is"))
    add("audit", lambda _: database.audit(), "replay every ledger and report inconsistencies")
    add("rotate", lambda _: database.rotate(), "encrypt destinations with the newest key, to retire older keys")
    database.add_suspend_arguments(
        add("suspend", database.suspend, "refuse an organization's sends and purchases until `resume`")
    )
    database.add_organization_arguments(add("resume", database.resume, "end an organization's suspension"))
    database.add_erase_arguments(
        add("erase", database.erase, "erase what is stored of one destination, which is read from standard input")
    )
    add("public-keys", lambda _: database.print_public_keys(), "print the public keys of receipts, as PEM")
    export.add_arguments(
        add("export", export.export, "write an organization's ledger to a file, by month, as CSV or Parquet")
    )
    restored.add_arguments(
        add("restored", restored.restored, "do what follows when the database was restored to an earlier time")
    )
    reference.add_arguments(
        add("reference", reference.reference, "generate the tables of Markdown files from the code")
    )
    token.add_arguments(add("token", token.token, "sign a token with the development key"))
    return parser


def _sandbox(name: str) -> ModuleType:
    """Import a module of the sandbox, which production installs leave out."""
    try:
        return import_module(f"server.sandbox.{name}")
    except ModuleNotFoundError as error:
        raise SettingsError(f"{name} requires a checkout: this install lacks the sandbox ({error.name})") from None


if __name__ == "__main__":
    sys.exit(main())
