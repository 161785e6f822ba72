"""Will a run fit? What it holds and sends, part by part, and a verdict."""
