"""`migrate`: brings the database's schema up to date."""

import os

from server.commands.serve import database
from server.environment import load_settings
from server.logs import configure_logging


def migrate_database() -> None:
    """Apply what is missing, and say what that was."""
    settings = load_settings(os.environ, {"database": {"migrate": True}})
    configure_logging(level="info", style="console")
    with database(settings):
        print("the schema is up to date")
