"""The room of accounts, ledger, pricing and top-ups."""
