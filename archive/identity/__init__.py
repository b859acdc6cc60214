"""Who a patient is: records, identifiers, merges, the national identity (INS)."""
