"""The former names of `scripted_ledger`, for tests that are being rewritten at this moment."""

from tests.integration.scripted_ledger import CommitScriptedLedger as TouchyAtCommit
from tests.integration.scripted_ledger import ScriptedLedger as TouchyLedger
from tests.integration.scripted_ledger import script_of as touchy_kind

__all__ = ["TouchyAtCommit", "TouchyLedger", "touchy_kind"]
