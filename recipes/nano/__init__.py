"""The bundled model nano: its dialogues, its speech data, its codec and their training."""
