"""Files: a tier of stored instances, a file being received, and the sweep of files without rows."""
