"""What every method must do: `from engine.conformance.checks import check_recipe`."""
