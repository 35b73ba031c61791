"""How the bundled models are made and examined. Not part of the wheel."""
