"""The layers around one call, from the retry down to the wire."""
