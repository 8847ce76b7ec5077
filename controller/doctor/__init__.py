"""`containerstacks-billing doctor`: checks everything that billing depends on, and says how to fix what is wrong.

It works on a broken installation: a check that depends on a failed one is skipped, with the reason. It only reads, in
read-only transactions, and takes no lock. Start-up makes most of these checks too. The doctor calls the same functions,
and lists every result instead of stopping at the first failure.
"""

from controller.doctor.examination import examine
from controller.doctor.findings import Finding, Level

__all__ = ["Finding", "Level", "examine"]
