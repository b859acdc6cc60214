"""Files: a tier of stored instances, a file being received, and PS3.10 bytes turned into one."""
