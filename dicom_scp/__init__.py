"""The DICOM port: associations and the DIMSE services. Translates; decides nothing about images or patients."""
