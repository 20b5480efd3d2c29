"""Archives: what was taken out of the log, in files, readable as the log is."""
