"""Conversations for other programs: sockets, and who may open one."""
