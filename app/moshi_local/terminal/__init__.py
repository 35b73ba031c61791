"""What the user sees and types: the screen, plain lines, keys."""
