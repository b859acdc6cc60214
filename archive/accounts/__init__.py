"""Who is known here: people with passwords, machines with tokens, sessions of the desk (REQ-SEC-24).

Secrets are stored hashed and shown once. Whatever changes here is audited in the transaction that changes it; expiry
and idle time follow the real clock (law 6).
"""

from archive.accounts.assertions import vouched_for
from archive.accounts.passwords import LEAST_CHARACTERS
from archive.accounts.people import (
    Account,
    NewAccount,
    add_account,
    authenticate,
    disable_account,
    enable_account,
    ensure_first_account,
    list_accounts,
    set_password,
)
from archive.accounts.sessions import actor_of_session, create_session, end_session
from archive.accounts.tokens import NewToken, Token, actor_of_token, create_token, list_tokens, revoke_token

__all__ = [
    "LEAST_CHARACTERS",
    "Account",
    "NewAccount",
    "NewToken",
    "Token",
    "actor_of_session",
    "actor_of_token",
    "add_account",
    "authenticate",
    "create_session",
    "create_token",
    "disable_account",
    "enable_account",
    "end_session",
    "ensure_first_account",
    "list_accounts",
    "list_tokens",
    "revoke_token",
    "set_password",
    "vouched_for",
]
