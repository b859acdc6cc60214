"""The follow-up of accesses: who did what, to whose images, when, from where, with what outcome (sheet 40 §2-3).

`record` writes one row inside the transaction of the act (law 4), `chain` links the rows of a process by hashes
(REQ-SEC-04), `accesses` opens and closes the rows of a long access, `verify` checks the chains, `read` lists them.
Rows are only ever appended; audit is not logging.
"""
