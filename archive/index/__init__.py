"""The index: what was received, how it is found."""
