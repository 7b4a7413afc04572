"""Many trainings, one verdict."""
