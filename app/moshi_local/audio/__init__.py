"""Sound: devices, streams, both sides of a card, echo, files. Knows no models."""
