"""`python -m server COMMAND`: everything that can be run."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

from server.commands import (
    audit,
    demo,
    development,
    doctor,
    endpoint,
    migration,
    reconciliation,
    reference,
    rotation,
    serve,
    token,
    webhook,
)
from server.database.embedded import EmbeddedPostgresError
from server.environment import SettingsError

Command = Callable[[argparse.Namespace], int | None]

_INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended: 128 and the signal's number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. What an operator can mend is one line on standard error."""
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed) or 0
    except (SettingsError, EmbeddedPostgresError) as error:
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

    serve.add_arguments(add("serve", serve.serve, "the gRPC server"))
    add("webhook", lambda _: webhook.webhook(), "the sidecar that takes Stripe's webhooks in")
    add("dev", lambda _: development.dev(), "everything on this machine, with nothing configured")
    add("demo", lambda _: demo.demo(), "the story of a top-up and three sends, played through gRPC and HTTP")
    add("migrate", lambda _: migration.migrate_database(), "bring the database's schema up to date")
    reconciliation.add_arguments(
        add("reconcile", reconciliation.reconcile, "compare Stripe with the top-ups, or process an event again")
    )
    endpoint.add_arguments(
        add("stripe-endpoint", endpoint.stripe_endpoint, "make Stripe send the needed events to the sidecar")
    )
    add("doctor", lambda _: doctor.doctor(), "look at everything that a deployment needs, and list every setting")
    add("audit", lambda _: audit.audit(), "replay every ledger and say whether all of them hold")
    add("rotate", lambda _: rotation.rotate(), "seal destinations under the current key, so that an older one may go")
    reference.add_arguments(
        add("reference", reference.reference, "rewrite the tables of a Markdown file from the code")
    )
    token.add_arguments(add("token", token.token, "mint a token with the development key"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
