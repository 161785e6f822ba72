"""What every method must do: `from models.conformance.checks import check_recipe`."""
