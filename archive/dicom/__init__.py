"""What the archive knows of DICOM data sets. Pure: bytes in, facts out."""
