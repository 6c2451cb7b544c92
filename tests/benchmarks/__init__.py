"""The peers do the job that the table says they do."""
