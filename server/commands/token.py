"""`token`: mints a token with the development key; production has its own issuer."""

import argparse
import os

from server.environment import load_settings
from server.rpc.development_key import development_key
from server.rpc.permissions import ALL_PERMISSIONS
from server.rpc.tokens import mint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the token shall say."""
    parser.add_argument("--organization", default="demo", help="the organization it is for, or * for any (demo)")
    parser.add_argument("--subject", default="developer", help="who calls (developer)")
    parser.add_argument("--permission", action="append", choices=sorted(ALL_PERMISSIONS), help="again for more (all)")
    parser.add_argument("--hours", type=float, default=24, help="how long it is good for (24)")


def token(arguments: argparse.Namespace) -> None:
    """Print a token."""
    key = development_key(load_settings(os.environ).data)
    print(
        mint(
            key.private_key(),
            subject=arguments.subject,
            organization_id=arguments.organization,
            permissions=arguments.permission or sorted(ALL_PERMISSIONS),
            lifetime_seconds=arguments.hours * 3600,
        )
    )
