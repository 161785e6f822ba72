"""What the entry points do, by functions that others may call too; above all other rooms."""
