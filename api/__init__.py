"""The HTTP port: desk, administration and DICOMweb. Translates; decides nothing about images or patients."""
