"""All lossy code, a file per codec. What it makes is a new instance, never a stored one (REQ-DCM-80)."""
