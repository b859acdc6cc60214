"""HL7 v2 over MLLP: what the RIS says of patients and orders."""
