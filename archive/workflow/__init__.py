"""Orders of the RIS, and the studies that answer them."""
