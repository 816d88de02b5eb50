"""What users touch: the command line, planning, the coordinator, the ledger, reports."""
