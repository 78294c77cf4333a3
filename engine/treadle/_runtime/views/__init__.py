"""What users read: results, artifacts, lineage, tables and drawings. Nothing in here changes a run."""
