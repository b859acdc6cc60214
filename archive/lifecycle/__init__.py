"""Age: what is kept until when, what moves to cold storage, what is announced and purged (sheet 00 §8)."""
