"""`python -m tests.bench`: a generated CT series is stored, found and retrieved; figures beside other archives."""
