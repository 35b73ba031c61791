"""Programs that measure. Not part of the wheel."""
