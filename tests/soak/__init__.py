"""Full load for a while: `make soak` (`python -m tests.soak`)."""
