"""The archive: what is promised, to whom, and how it is kept. Knows no network protocol."""
