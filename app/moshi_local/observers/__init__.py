"""Listeners that keep or pass on what happens: recordings, event logs, traces, pictures."""
