"""Pictures of a run, from the files that a source wrote."""
